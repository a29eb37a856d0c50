package redistest

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Proxy stands between clients and their server, and breaks what passes.
type Proxy struct {
	Addr string
	l    net.Listener
	wg   sync.WaitGroup

	mu      sync.Mutex // guards following
	target  string
	conns   map[net.Conn]bool
	refuse  bool
	delay   time.Duration
	frozen  chan struct{}                // closed when traffic may pass
	onReply func(asked, got []byte) bool // false cuts the connection instead of passing a reply on
}

// StartProxy listens for connections to a server's address until the test ends.
func StartProxy(t testing.TB, target string) *Proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), l: l, target: target, conns: map[net.Conn]bool{}, frozen: make(chan struct{})}
	close(p.frozen)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.Thaw()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Client makes a client of the server behind the proxy, closed with the test.
func (p *Proxy) Client(t testing.TB) *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: p.Addr})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func (p *Proxy) accept() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse, target := p.refuse, p.target
		p.mu.Unlock()
		server, err := net.Dial("tcp", target)
		if refuse || err != nil {
			_ = client.Close()
			if err == nil {
				_ = server.Close()
			}
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		var asked lastAsked
		p.wg.Go(func() { p.pass(client, server, func(b []byte) bool { asked.set(b); return true }) })
		p.wg.Go(func() {
			p.pass(server, client, func(b []byte) bool {
				p.mu.Lock()
				onReply, delay := p.onReply, p.delay
				p.mu.Unlock()
				time.Sleep(delay)
				return onReply == nil || onReply(asked.get(), b)
			})
		})
	}
}

type lastAsked struct {
	mu sync.Mutex
	b  []byte
}

func (l *lastAsked) set(b []byte) { l.mu.Lock(); defer l.mu.Unlock(); l.b = bytes.Clone(b) }
func (l *lastAsked) get() []byte  { l.mu.Lock(); defer l.mu.Unlock(); return l.b }

func (p *Proxy) pass(from, to net.Conn, ok func([]byte) bool) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		frozen := p.frozen
		p.mu.Unlock()
		<-frozen
		if err != nil || !ok(buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Cut resets every connection.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
		delete(p.conns, c)
	}
}

// Freeze keeps connections open, but passes nothing on.
func (p *Proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = make(chan struct{})
}

// Thaw ends Freeze: what was sent meanwhile arrives.
func (p *Proxy) Thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.frozen:
	default:
		close(p.frozen)
	}
}

// SetRefuse says whether new connections are closed at once.
func (p *Proxy) SetRefuse(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
}

// SetDelay makes every reply come later.
func (p *Proxy) SetDelay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// SetTarget says where new connections go; those that are open stay where they are.
func (p *Proxy) SetTarget(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = addr
}

// SetOnReply sets a function that is shown every reply, with what was asked last on its
// connection. Where it returns false, the connection is cut instead.
func (p *Proxy) SetOnReply(f func(asked, got []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onReply = f
}

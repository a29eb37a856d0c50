package eventbus_test

import (
	"bytes"
	"net"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// A proxy stands between a client and its server, and breaks what passes.
type proxy struct {
	t      testing.TB
	target string
	l      net.Listener
	wg     sync.WaitGroup

	mu      sync.Mutex // guards following
	conns   map[net.Conn]bool
	refuse  bool
	frozen  chan struct{}                // closed when traffic may pass
	onReply func(asked, got []byte) bool // false cuts the connection instead of passing a reply on
}

func startProxy(t testing.TB, target string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{t: t, target: target, l: l, conns: map[net.Conn]bool{}, frozen: make(chan struct{})}
	close(p.frozen)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.thaw()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) client(t testing.TB) *redis.Client {
	rdb := redis.NewClient(&redis.Options{Addr: p.l.Addr().String()})
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

func (p *proxy) accept() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refuse := p.refuse
		p.mu.Unlock()
		server, err := net.Dial("tcp", p.target)
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
				onReply := p.onReply
				p.mu.Unlock()
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

func (p *proxy) pass(from, to net.Conn, ok func([]byte) bool) {
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

// cut resets every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
		delete(p.conns, c)
	}
}

// freeze keeps connections open but passes nothing on.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = make(chan struct{})
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.frozen:
	default:
		close(p.frozen)
	}
}

func (p *proxy) setRefuse(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = refuse
}

func (p *proxy) setOnReply(f func(asked, got []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onReply = f
}

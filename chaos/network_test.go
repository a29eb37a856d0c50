package chaos

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/stream"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"
)

// A line is a way through a proxy, in which a toxic can work in each direction.
type line struct {
	addr  string
	proxy *toxiproxy.Proxy

	mu      sync.Mutex // guards following
	toxic   map[stream.Direction]*toxic
	changed chan struct{} // closed when toxic changes
}

// A toxic is the name and the attributes of one of those that toxiproxy has or that are
// registered below; nil for none.
type toxic struct {
	kind       string
	attributes string // JSON
}

// newLine listens on 127.0.0.1 for connections to a server. Where it is abrupt, its
// connections end with a reset instead of in order.
func newLine(t testing.TB, target string, abrupt bool) *line {
	t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l := &line{toxic: make(map[stream.Direction]*toxic), changed: make(chan struct{})}
	l.proxy = toxiproxy.NewProxy(server, t.Name(), "127.0.0.1:0", target)
	for _, direction := range []string{"upstream", "downstream"} {
		if abrupt { // never at work; that it is there makes toxiproxy set up connections for resets
			l.install(t, fmt.Sprintf(`{"name":"abrupt_%s","type":"reset_peer","stream":%[1]q,"toxicity":0}`, direction))
		}
		l.install(t, fmt.Sprintf(`{"name":"socket_%s","type":"socket","stream":%[1]q}`, direction))
	}
	for _, direction := range []stream.Direction{stream.Upstream, stream.Downstream} {
		socket := l.proxy.Toxics.GetToxic("socket_" + direction.String()).Toxic.(*socket)
		socket.line, socket.direction = l, direction
	}
	if err := l.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	l.addr = l.proxy.Listen
	t.Cleanup(func() {
		l.set(nil, nil)
		l.proxy.Stop()
	})
	return l
}

func (l *line) install(t testing.TB, toxic string) {
	t.Helper()
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		t.Fatal(err)
	}
}

// set changes what works on the line, also on connections that are open.
func (l *line) set(up, down *toxic) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.toxic[stream.Upstream], l.toxic[stream.Downstream] = up, down
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *line) at(d stream.Direction) (*toxic, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.toxic[d], l.changed
}

// refuse ends all connections and refuses new ones.
func (l *line) refuse() { l.proxy.Stop() }

// accept is false while the port is not to be had.
func (l *line) accept() bool {
	err := l.proxy.Start()
	return err == nil || err == toxiproxy.ErrProxyAlreadyStarted
}

func init() {
	toxics.Register("socket", new(socket))
	toxics.Register("stall", new(stall))
	toxics.Register("unanswered", new(unanswered))
}

// A stall keeps what comes until it ends, as a network does that is away for a while.
type stall struct{}

func (*stall) Pipe(stub *toxics.ToxicStub) { <-stub.Interrupt }

// An unanswered toxic cuts the connection between a publish that has run and its reply.
type unanswered struct{}

var appendReply = regexp.MustCompile(`\$\d+\r\n[+=]\d+-\d+\r\n`)

func (*unanswered) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case c := <-stub.Input:
			if c == nil || appendReply.Match(c.Data) {
				stub.Close()
				return
			}
			stub.Output <- c
		}
	}
}

// A socket is the one toxic that is on every connection for good. It runs whichever is
// due on its line. Toxiproxy could change toxics by itself, but now and then does not come
// back from it: it waits, holding the lock that is needed for that, for the connection of
// a toxic to be cleared away.
type socket struct {
	line      *line
	direction stream.Direction
}

// A passage is a connection at work in one direction.
type passage struct {
	stub    *toxics.ToxicStub
	in, out []*stream.StreamChunk // on their way into and out of the toxic
	ended   bool                  // nothing more comes in
}

func (s *socket) Pipe(stub *toxics.ToxicStub) {
	p := passage{stub: stub}
	for {
		toxic, changed := s.line.at(s.direction)
		if !p.run(toxic, changed) {
			break
		}
	}
	late := time.After(time.Second)
	for gone := false; len(p.out) > 0 && !gone; p.out = p.out[1:] {
		select {
		case stub.Output <- p.out[0]:
		case <-late: // the other end is gone
			gone = true
		}
	}
	stub.Close()
	for range stub.Input { // so that nobody waits to be heard
	}
}

// run lets a toxic work until it is over, and then tells whether the connection is still
// good.
func (p *passage) run(t *toxic, changed <-chan struct{}) (open bool) {
	if t == nil {
		t = &toxic{kind: "noop", attributes: "{}"}
	}
	w := &toxics.ToxicWrapper{Type: t.kind, Toxicity: 1}
	if err := json.Unmarshal([]byte(t.attributes), toxics.New(w)); err != nil {
		panic(err)
	}
	into, from := make(chan *stream.StreamChunk), make(chan *stream.StreamChunk)
	stub := toxics.NewToxicStub(into, from)
	if stateful, ok := w.Toxic.(toxics.StatefulToxic); ok {
		stub.State = stateful.NewState()
	}
	go stub.Run(w)
	var interrupted chan bool
	closed := false
	for {
		input, feed, output := p.stub.Input, into, p.stub.Output
		var first, last *stream.StreamChunk
		if p.ended {
			input = nil
		}
		if len(p.in) == 0 || interrupted != nil {
			feed = nil
		} else {
			first = p.in[0]
		}
		if len(p.out) == 0 {
			output = nil
		} else {
			last = p.out[0]
		}
		if p.ended && len(p.in) == 0 && !closed && interrupted == nil {
			close(into)
			closed = true
		}
		select {
		case c := <-input:
			if c == nil {
				p.ended = true
			} else {
				p.in = append(p.in, c)
			}
		case feed <- first:
			p.in = p.in[1:]
		case output <- last:
			p.out = p.out[1:]
		case c, ok := <-from:
			if !ok {
				return false
			}
			p.out = append(p.out, c)
		case <-changed:
			changed = nil
			interrupted = make(chan bool, 1)
			go func() { interrupted <- stub.InterruptToxic() }()
		case alive := <-interrupted:
			if !alive {
				return false
			}
			// One that has dropped data does not leave a connection with a hole behind.
			_, cleanup := w.Toxic.(toxics.CleanupToxic)
			return !cleanup
		}
	}
}

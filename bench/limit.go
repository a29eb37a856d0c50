package main

import (
	"context"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
)

// limit is net/http and nothing else: each channel is one slice of bytes that only grows,
// each client an offset in it, and what has come since is one Write.
type limit struct {
	mu   sync.Mutex
	hubs map[int]*hub
}

type hub struct {
	mu  sync.Mutex // of publishers; readers never hold them up
	now atomic.Pointer[state]
}

type state struct {
	bytes []byte
	more  chan struct{} // closed when there is more
}

func newLimit(context.Context, string, map[string]string) (contestant, error) {
	return &limit{hubs: make(map[int]*hub)}, nil
}

func (l *limit) hub(channel int) *hub {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.hubs[channel]
	if h == nil {
		h = &hub{}
		h.now.Store(&state{more: make(chan struct{})})
		l.hubs[channel] = h
	}
	return h
}

func (l *limit) publish(_ context.Context, channel int, text string, _ *string) error {
	h := l.hub(channel)
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.now.Load()
	bytes := append(old.bytes, "id: 01234567890123456789\nevent: bench.tick\ndata: "+bodyHead...)
	bytes = append(append(bytes, text...), bodyTail+"\n\n"...)
	h.now.Store(&state{bytes, make(chan struct{})})
	close(old.more)
	return nil
}

func (l *limit) request(channel int, _ string) request {
	return request{path: "/?channel=" + strconv.Itoa(channel)}
}

func (l *limit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	channel := atoi(r.FormValue("channel"))
	h := l.hub(channel)
	at := len(h.now.Load().bytes)
	begin(w)
	flusher := w.(http.Flusher)
	for {
		s := h.now.Load()
		news := s.bytes[at:]
		if len(news) == 0 {
			select {
			case <-s.more:
				runtime.Gosched() // more may follow: it goes into the same Write
			case <-r.Context().Done():
				return
			}
			continue
		}
		if _, err := w.Write(news); err != nil {
			return
		}
		flusher.Flush()
		at += len(news)
	}
}

// begin starts a stream with something behind the header.
func begin(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = w.Write([]byte(":\n\n"))
	_ = http.NewResponseController(w).Flush()
}

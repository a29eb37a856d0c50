package main

import (
	"context"
	"net/http"
	"runtime"
	"strconv"
	"sync"
)

// limit is net/http and nothing else: each channel is one slice of bytes that only grows,
// each client an offset in it, and what has come since is one Write.
type limit struct {
	mu   sync.Mutex
	hubs map[int]*hub
}

type hub struct {
	mu    sync.RWMutex
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
		h = &hub{more: make(chan struct{})}
		l.hubs[channel] = h
	}
	return h
}

func (l *limit) publish(_ context.Context, channel int, record string) (string, error) {
	h := l.hub(channel)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bytes = append(h.bytes, "id: 01234567890123456789\nevent: bench.tick\ndata: "+bodyHead...)
	h.bytes = append(h.bytes, record...)
	h.bytes = append(h.bytes, bodyTail+"\n\n"...)
	close(h.more)
	h.more = make(chan struct{})
	return "", nil
}

func (l *limit) request(channel int, _ string) request {
	return request{path: "/?channel=" + strconv.Itoa(channel)}
}

func (l *limit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	channel := atoi(r.FormValue("channel"))
	h := l.hub(channel)
	h.mu.RLock()
	at := len(h.bytes)
	h.mu.RUnlock()
	begin(w)
	flusher := w.(http.Flusher)
	for {
		h.mu.RLock()
		news, more := h.bytes[at:], h.more
		h.mu.RUnlock()
		if len(news) == 0 {
			select {
			case <-more:
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

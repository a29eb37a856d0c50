package eventbus

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// WriterOptions are for [Bus.NewWriter].
type WriterOptions struct {
	// Channels get every event, as does its project's channel. There are at most 31, see
	// [WithMaxChannels]. The same channel twice counts once.
	Channels []Channel
	// NoProject leaves the project's channel out: the events go to Channels alone.
	NoProject bool
	// Buffer is how many events may be under way: written, and not yet known to be in their logs.
	// Their JSON has 4 MiB at most. With more, Write waits. 0 is 1,024. A negative number is an
	// error.
	Buffer int
}

// A Writer publishes a stream of events, such as the tokens of a model, without waiting for Redis:
// Write returns at once, and the logs have the events in the order of the calls. [Bus.NewWriter]
// makes one. It is safe for concurrent use. A Writer with nothing under way holds no goroutine, so
// it costs nothing to keep one for each run.
type Writer struct {
	bus  *Bus
	opts WriterOptions

	mu     sync.Mutex // guards following
	cursor Cursor
	failed *WriteError
	closed bool
}

// NewWriter makes a Writer. What is wrong with the options is the error of its methods: a
// [*ValidationError] that names the field.
func (b *Bus) NewWriter(opts WriterOptions) *Writer {
	opts.Channels = slices.Clone(opts.Channels)
	return &Writer{bus: b, opts: opts}
}

// errWriterClosed is the error of a Write behind Close or End.
var errWriterClosed = fmt.Errorf("eventbus: write: the writer is closed: %w", ErrClosed)

// Write takes an event for the logs.
func (w *Writer) Write(ctx context.Context, ev Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.put(ctx, ev, nil)
}

func (w *Writer) put(ctx context.Context, ev Event, ends []Channel) error {
	if w.failed != nil {
		return w.failed
	}
	if w.closed {
		return errWriterClosed
	}
	receipt, err := w.bus.PublishWith(ctx, ev, PublishOptions{Channels: w.opts.Channels, NoProject: w.opts.NoProject, Ends: ends})
	if err == nil {
		w.cursor = receipt.Cursor
	}
	return err
}

// Flush waits until everything that was written is in its logs.
func (w *Writer) Flush(ctx context.Context) (Cursor, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return Cursor{}, w.failed
	}
	return w.cursor, nil
}

// End writes the last event of the Writer's Channels, and closes the Writer.
func (w *Writer) End(ctx context.Context, ev Event) error {
	w.mu.Lock()
	if err := w.put(ctx, ev, w.opts.Channels); err != nil {
		w.mu.Unlock()
		return err
	}
	w.mu.Unlock()
	return w.Close(ctx)
}

// Close flushes the Writer. Later writes get an error that wraps [ErrClosed].
func (w *Writer) Close(ctx context.Context) error {
	_, err := w.Flush(ctx)
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	return err
}

// A WriteError says which events a [Writer] has taken that are not known to be in all their logs.
type WriteError struct {
	// Events are in the order in which they were written.
	Events []Event
	// Err is the cause.
	Err error
}

// Error says how many events there are, and the cause.
func (e *WriteError) Error() string {
	return fmt.Sprintf("eventbus: write: %d events are not known to be in their logs: %v", len(e.Events), e.Err)
}

// Unwrap gives the cause.
func (e *WriteError) Unwrap() error { return e.Err }

package eventbus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/commit"
	"github.com/syndarix/eventbus/internal/pace"
	"github.com/syndarix/eventbus/internal/wire"
)

// WriterOptions are for [Bus.NewWriter].
type WriterOptions struct {
	// Channels get every event, as does the event's project's channel. There are at most 31, see
	// [WithMaxChannels]. The same channel twice counts once.
	Channels []Channel
	// NoProject leaves the project's channel out: the events go to Channels alone. This is for the
	// tokens of a run, which only the readers of the run want.
	NoProject bool
	// Buffer is how many events may be under way: written, and not yet known to be in their logs.
	// They have 4 MiB of JSON at most, unless it is a single event. With more, [Writer.Write] waits.
	// 0 means 1,024.
	Buffer int
}

const (
	writerBuffer = 1024
	writerBytes  = 4 << 20 // the most JSON that may be under way
)

// A Writer publishes a stream of events, such as the tokens of a model, without waiting for Redis.
// Write returns at once, and the logs have the events in the order of the calls. It keeps one call
// to Redis on the wire, and what is written meanwhile goes together into the next one. Writers and
// publishers of a process share calls.
//
// If Redis is away, the Writer goes on for 10 minutes, and Write waits when the buffer is full. Three
// things stop the Writer: a channel has ended, the key of a log in Redis holds something else, or
// Redis was away for 10 minutes. From then on, every method returns the same [*WriteError], which has
// the events that are not known to be in their logs.
//
// [Writer.Flush], [Writer.Close] and [Writer.End] report every event that Write has taken. Check the
// error of Write all the same: an event that is not valid or too large is not taken, and no later
// call says so.
//
// [Bus.NewWriter] makes a Writer. It is safe for concurrent use. Two Writers may write to the same
// channel. A Writer that has nothing under way holds no goroutine, and need not be closed.
type Writer struct {
	bus    *Bus
	opts   WriterOptions
	bad    error // what is wrong with the options
	route  atomic.Pointer[route]
	ctx    context.Context // ends when a Close gives up
	giveUp context.CancelCauseFunc

	turn chan struct{} // has a token while a Write waits for room, or takes it
	room pace.Flag     // wakes the Write that waits for room

	mu      sync.Mutex     // guards following
	pending []commit.Event // what is under way, in order; with the first of them a goroutine is at work
	bytes   int            // of their JSON
	flushes []*flush       // in the order of the calls
	cursor  Cursor         // behind the last event, while none is under way
	closed  bool
	failed  *WriteError
}

// A route is where the events of one project go, in the order in which the logs are written.
type route struct {
	project  uuid.UUID
	channels []Channel
	texts    []string
}

// A flush waits for what is under way when Flush is called.
type flush struct {
	left   int           // how many events these still are
	done   chan struct{} // closed when the result is known
	cursor Cursor
	err    error
}

// errWriterClosed is the error of a write behind Close or End.
type errWriterClosed struct{}

func (errWriterClosed) Error() string        { return "eventbus: write: the writer is closed" }
func (errWriterClosed) Is(target error) bool { return target == ErrClosed }

var errNoWriter = fmt.Errorf("eventbus: the writer was not made by NewWriter")

// NewWriter makes a Writer. If something is wrong with the options, all methods of the Writer return
// a [*ValidationError] that names the fields.
func (b *Bus) NewWriter(opts WriterOptions) *Writer {
	w := &Writer{bus: b, opts: opts, bad: b.made(), turn: make(chan struct{}, 1), room: pace.NewFlag()}
	w.ctx, w.giveUp = context.WithCancelCause(context.Background())
	w.opts.Channels = slices.Clone(opts.Channels)
	if opts.Buffer == 0 {
		w.opts.Buffer = writerBuffer
	}
	p := problems{subject: "writer"}
	for i, c := range opts.Channels {
		if problem := c.problem(); problem != "" {
			p.Add(fmt.Sprintf("channels[%d]", i), "%s", problem)
		}
	}
	if opts.NoProject && len(opts.Channels) == 0 {
		p.Add("channels", "is empty, and the project's channel is left out")
	}
	if opts.Buffer < 0 {
		p.Add("buffer", "%d is negative", opts.Buffer)
	}
	w.bad = firstOf(w.bad, p.err())
	return w
}

// Write takes an event, and returns before the event is in its logs. It waits only while the buffer
// is full: see [WriterOptions].Buffer.
//
// A [*WriteError] says that the Writer has stopped. Every other error says that the event was not
// taken, and leaves the Writer as it was: a [*ValidationError] or a [*LimitError] for a bad event;
// the context's cause, if the context ends while Write waits, or had ended before the call; and
// [ErrClosed] after [Writer.Close], [Writer.End], [Bus.Shutdown] or [Bus.Close].
func (w *Writer) Write(ctx context.Context, ev Event) error {
	if err := w.refusal(); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	next, err := w.encode(&ev)
	if err != nil {
		return err
	}
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-w.turn }()
	for {
		if taken, err := w.take(next, false); taken || err != nil {
			return err
		}
		select {
		case <-w.room:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.bus.draining.Done():
			return ErrClosed
		}
	}
}

// Flush waits until everything that was written before is in its logs. The cursor is the place right
// behind the last of these events, in the Writer's Channels and, unless NoProject, in the channel of
// the event's project. Store it with the state that the events lead to: a subscription that resumes
// from it gets what follows. It is zero if nothing was written.
//
// The error is a [*WriteError], or the context's cause. In the second case, the Writer goes on.
func (w *Writer) Flush(ctx context.Context) (Cursor, error) {
	f := w.flush()
	select {
	case <-f.done:
		return f.cursor, f.err
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		w.flushes = slices.DeleteFunc(w.flushes, func(other *flush) bool { return other == f })
		return Cursor{}, context.Cause(ctx)
	}
}

// flush begins to wait for what is under way now.
func (w *Writer) flush() *flush {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := &flush{left: len(w.pending), cursor: w.cursor, err: w.brokenLocked(), done: make(chan struct{})}
	switch {
	case f.err != nil:
		f.cursor = Cursor{}
		close(f.done)
	case f.left == 0:
		close(f.done)
	default:
		w.flushes = append(w.flushes, f)
	}
	return f
}

// End takes the last event of the Writer's Channels, and closes the Writer as Close does. It does
// not wait for room in the buffer. The Channels end with the event, behind everything that was
// written: see [PublishOptions].Ends. Unless NoProject, the project's channel gets the event, too; it
// does not end. [Writer.Flush] still gives the cursor behind the event.
//
// A bad event, or a Writer without Channels or with a project's channel among them, is a
// [*ValidationError] and leaves the Writer as it was. The other errors are those of Write and Close.
func (w *Writer) End(ctx context.Context, ev Event) error {
	if err := w.refusal(); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	p := problems{subject: "end of a writer"}
	if len(w.opts.Channels) == 0 {
		p.Add("channels", "is empty, so there is nothing to end")
	}
	for i, c := range w.opts.Channels {
		if c.kind == ProjectKind {
			p.Add(fmt.Sprintf("channels[%d]", i), "is a project's channel, which cannot end")
		}
	}
	if err := p.err(); err != nil {
		return err
	}
	last, err := w.encode(&ev)
	if err != nil {
		return err
	}
	last.Ends = channelTexts(w.opts.Channels)
	if _, err := w.take(last, true); err != nil {
		return err
	}
	return w.Close(ctx)
}

// Close waits until everything that was written is in its logs. Later writes get an error that is
// [ErrClosed]. [Writer.Flush] still works, and gives the cursor. A second Close waits as Flush does.
//
// If the context ends first, Close gives up what is not in its logs yet, and returns it in a
// [*WriteError]. What is on the wire then may still come into its logs.
func (w *Writer) Close(ctx context.Context) error {
	if w.bus == nil {
		return errNoWriter
	}
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.room.Set()
	f := w.flush()
	select {
	case <-f.done:
	case <-ctx.Done():
		w.giveUp(context.Cause(ctx))
		<-f.done // Nothing waits for Redis any more.
	}
	return f.err
}

// brokenLocked is the error of a Writer that can do nothing more.
func (w *Writer) brokenLocked() error {
	switch {
	case w.bus == nil:
		return errNoWriter
	case w.bad != nil:
		return w.bad
	case w.failed != nil:
		return w.failed
	}
	return nil
}

// refusal is the error of a write that comes now, nil if it is welcome.
func (w *Writer) refusal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refusalLocked()
}

func (w *Writer) refusalLocked() error {
	switch err := w.brokenLocked(); {
	case err != nil:
		return err
	case w.closed:
		return errWriterClosed{}
	case w.bus.isDraining():
		return ErrClosed
	}
	return nil
}

// encode checks an event.
func (w *Writer) encode(ev *Event) (commit.Event, error) {
	if err := ev.Validate(); err != nil {
		return commit.Event{}, err
	}
	r := w.route.Load()
	if r == nil || r.project != ev.ProjectID && !w.opts.NoProject {
		opts := PublishOptions{Channels: w.opts.Channels, NoProject: w.opts.NoProject}
		channels, err := opts.channels(ev.ProjectID)
		if err != nil {
			return commit.Event{}, err
		}
		r = &route{ev.ProjectID, channels, channelTexts(channels)}
		w.route.Store(r)
	}
	data, err := w.bus.encode(ev, r.channels)
	return commit.Event{ID: ev.ID, JSON: data, Channels: r.texts}, err
}

// take puts an event behind those under way, and reports whether there was room. For the last event
// there always is.
func (w *Writer) take(ev commit.Event, last bool) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.refusalLocked(); err != nil {
		return false, err
	}
	n := len(w.pending)
	if n > 0 && !last && (n >= w.opts.Buffer || w.bytes+len(ev.JSON) > writerBytes) {
		return false, nil
	}
	if n == 0 {
		if !w.bus.enter() {
			return false, ErrClosed
		}
		w.bus.spawn(w.send)
	}
	w.pending = append(w.pending, ev)
	w.bytes += len(ev.JSON)
	w.closed = w.closed || last
	return true, nil
}

// send brings what is under way into its logs, batch by batch, until there is nothing more.
func (w *Writer) send() {
	defer w.bus.leave()
	for more := true; more; w.room.Set() {
		w.mu.Lock()
		events := w.pending
		w.mu.Unlock()
		batch, err := w.bus.commits.PublishBatch(w.ctx, events)
		if more = err == nil; more {
			more = w.settle(batch)
		} else {
			w.fail(batch, err)
		}
	}
}

// settle removes a batch that is in its logs, and reports whether there is more under way.
func (w *Writer) settle(batch []commit.Publication) bool {
	w.bus.stats.published.Add(int64(len(batch)))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ev := range w.pending[:len(batch)] {
		w.bytes -= len(ev.JSON)
	}
	w.pending = slices.Delete(w.pending, 0, len(batch))
	for len(w.flushes) > 0 && w.flushes[0].left <= len(batch) {
		f := w.flushes[0]
		f.cursor = w.bus.cursorBehind(&batch[f.left-1])
		close(f.done)
		w.flushes = slices.Delete(w.flushes, 0, 1)
	}
	for _, f := range w.flushes {
		f.left -= len(batch)
	}
	if len(w.pending) > 0 {
		return true
	}
	w.pending = nil
	w.cursor = w.bus.cursorBehind(&batch[len(batch)-1])
	return false
}

// fail stops the Writer.
func (w *Writer) fail(batch []commit.Publication, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = &WriteError{Err: err}
	for i, ev := range w.pending {
		if i < len(batch) && batch[i].Everywhere() {
			w.bus.stats.published.Add(1)
			continue
		}
		travelled, _ := wire.Decode(ev.JSON) // It was checked when it was written.
		w.failed.Events = append(w.failed.Events, eventOf(&travelled))
	}
	w.pending, w.bytes = nil, 0
	for _, f := range w.flushes {
		f.err = w.failed
		close(f.done)
	}
	w.flushes = nil
}

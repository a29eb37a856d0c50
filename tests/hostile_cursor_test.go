package tests

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/testing/redistest"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// A forged cursor is written by somebody who has read cursor.go: byte for byte as the
// format is documented there, with whatever numbers.
type forged struct {
	salt    byte
	entries []forgedEntry
	holes   []forgedHole
}

type forgedEntry struct {
	name       string // of the channel, as Redis knows it
	mark       uint16
	seq, epoch int64 // seq -1: there was no log
}

type forgedHole struct {
	channel                               byte
	uptoSeq, uptoEpoch, seqSince, epSince int64 // epochs as differences
}

func (f forged) bytes() []byte {
	b := []byte{0xE0 | f.salt&0x0F, byte(len(f.entries))}
	var before int64
	for i, e := range f.entries {
		h := fnv.New32a()
		h.Write([]byte{f.salt & 0x0F})
		h.Write([]byte(e.name))
		sum := h.Sum32()
		b = binary.BigEndian.AppendUint16(b, uint16(sum^sum>>16))
		b = binary.BigEndian.AppendUint16(b, e.mark)
		b = binary.AppendUvarint(b, uint64(e.seq+1))
		if i == 0 {
			b = binary.AppendUvarint(b, uint64(e.epoch))
		} else {
			b = binary.AppendVarint(b, e.epoch-before)
		}
		before = e.epoch
	}
	for _, h := range f.holes {
		b = append(b, h.channel)
		b = binary.AppendUvarint(b, uint64(h.uptoSeq+1))
		b = binary.AppendVarint(b, h.uptoEpoch)
		b = binary.AppendUvarint(b, uint64(h.seqSince+1))
		b = binary.AppendVarint(b, h.epSince)
		if h.epSince == 0 && h.seqSince >= h.uptoSeq {
			b = binary.BigEndian.AppendUint16(b, 7)
		}
	}
	return b
}

func (f forged) String() string { return base64.RawURLEncoding.EncodeToString(f.bytes()) }

// at gives a position as the numbers that a cursor has of it.
func forgedAt(t testing.TB, channel eventbus.Channel, position string) forgedEntry {
	t.Helper()
	epoch, seq, _ := strings.Cut(position, "-")
	e, err := strconv.ParseInt(epoch, 10, 64)
	require.NoError(t, err)
	s, err := strconv.ParseInt(seq, 10, 64)
	require.NoError(t, err)
	return forgedEntry{name: channel.String(), epoch: e, seq: s}
}

// A hostile is a client that resumes with what it likes, and an observer of what it is
// answered: only events of the channels that it may read.
type hostile struct {
	bus     *eventbus.Bus
	allowed []eventbus.Channel
	handler http.Handler
	mine    map[string]bool // ids of the events that it may be shown
}

func newHostile(bus *eventbus.Bus, allowed ...eventbus.Channel) *hostile {
	return &hostile{bus: bus, allowed: allowed, handler: handler(bus, reads(allowed...)), mine: map[string]bool{}}
}

// happens publishes an event to the n-th of the channels, and gives its id.
func (h *hostile) happens(t testing.TB, ctx context.Context, n int) string {
	c := h.allowed[n%len(h.allowed)]
	// Only a project's own events go to no other channel.
	project, channels := projectOf(c), []eventbus.Channel(nil)
	if c.Kind() != eventbus.ProjectKind {
		project, channels = uuid.New(), []eventbus.Channel{c}
	}
	ev := message(t, project, "allowed")
	h.mine[ev.ID] = true
	if err := h.bus.Publish(ctx, ev, channels...); err != nil {
		t.Error(err)
	}
	return ev.ID
}

// An answer is what the client was told before the event that happened last.
type answer struct {
	events map[string]int // how often, by id
	gaps   []gapData
}

// resume opens a stream as the request says. Once it stands, and after each gap, an event
// happens in one of its channels; the stream must bring the last of them.
func (h *hostile) resume(t testing.TB, ways ...with) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	r.Header.Set("Accept", "text/event-stream")
	for _, change := range ways {
		change(r)
	}
	got := answer{events: map[string]int{}}
	marker := ""
	p := sseclient.New("")
	w := &pipeWriter{header: http.Header{}, written: func(piece []byte) {
		for _, b := range p.Parse(piece) {
			requireOwnFields(t, b)
			if len(b.LastEventID) > 4096 || !cursorText.MatchString(b.LastEventID) {
				t.Fatalf("id %q", b.LastEventID)
			}
			switch {
			case b.Event == nil:
				if marker == "" {
					marker = h.happens(t, ctx, 0)
				}
			case b.Event.Type == "stream.live":
			case b.Event.Type == "stream.gap":
				var g gapData
				decodeInto(t, b.Event.Data, &g)
				c, err := eventbus.ParseChannel(g.Channel)
				require.NoError(t, err)
				require.Contains(t, h.allowed, c, "a gap of a channel that is not allowed")
				got.gaps = append(got.gaps, g)
				marker = h.happens(t, ctx, slices.Index(h.allowed, c)) // what had happened may be in the gap
			default:
				var ev struct{ ID string }
				if err := json.Unmarshal([]byte(b.Event.Data), &ev); err != nil || !h.mine[ev.ID] {
					t.Fatalf("an event that is not allowed: %s", b.Event.Data)
				}
				got.events[ev.ID]++
				if ev.ID == marker {
					cancel()
				}
			}
		}
	}}
	h.handler.ServeHTTP(w, r)
	require.Equal(t, http.StatusOK, w.status)
	require.Equal(t, "text/event-stream", w.header.Get("Content-Type"))
	require.NotZero(t, got.events[marker], "what happened next did not come")
	require.Empty(t, p.Unfinished())
	require.LessOrEqual(t, len(got.gaps), len(h.allowed), "gaps: %v", got.gaps)
	return got
}

var cursorText = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// requireOwnFields wants the fields of a block that the bus writes, each at most once.
func requireOwnFields(t testing.TB, b sseBlock) {
	t.Helper()
	seen := map[string]bool{}
	for _, line := range b.Lines {
		field, _, _ := strings.Cut(line, ":")
		if seen[field] || field != "" && field != "id" && field != "event" && field != "data" && field != "retry" {
			t.Fatalf("fields that the bus does not write: %q", b.Lines)
		}
		seen[field] = true
	}
}

// header and parameter are the two ways to resume; header takes what no HTTP client
// would send too.
func header(id string) with {
	return func(r *http.Request) { r.Header["Last-Event-Id"] = []string{id} }
}
func parameter(id string) with {
	return query("last_event_id", id)
}

// calls counts what Redis has been asked since it was started, by command.
func calls(t testing.TB, rdb *redis.Client) map[string]int {
	t.Helper()
	info, err := rdb.Info(t.Context(), "commandstats").Result()
	require.NoError(t, err)
	counts := map[string]int{}
	for line := range strings.Lines(info) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if !ok {
			continue
		}
		n, _, _ := strings.Cut(rest, ",")
		counts[name], err = strconv.Atoi(n)
		require.NoError(t, err)
	}
	return counts
}

// requireBounded wants at most so many calls of scripts, which is all that a stream asks
// of Redis, and so many commands inside them, since it was as before.
func requireBounded(t testing.TB, rdb *redis.Client, before map[string]int, scripts int) {
	t.Helper()
	after := calls(t, rdb)
	n, inside := 0, 0
	for name := range after {
		switch more := after[name] - before[name]; name {
		case "evalsha", "eval":
			n += more
		case "info", "ping", "hello", "client|setinfo", "subscribe", "auth", "select", "client|setname", "client|maint_notifications":
		default:
			inside += more
		}
	}
	require.LessOrEqual(t, n, scripts, "calls of scripts")
	require.LessOrEqual(t, inside, 8*scripts, "commands")
}

// channelsOf gives n channels of all kinds.
func someChannels(n int) (channels []eventbus.Channel) {
	for i := range n {
		make := []func(uuid.UUID) eventbus.Channel{eventbus.ProjectChannel, eventbus.AgentChannel, eventbus.UserChannel}[i%3]
		channels = append(channels, make(uuid.New()))
	}
	return channels
}

// still is a bus that asks Redis nothing by itself, so that what a client costs can be
// counted. Its logs hold few events: all of one channel fit into one page.
func still(t testing.TB, client eventbus.Client, opts ...any) *eventbus.Bus {
	return newBus(t, client, append([]any{quiet(), eventbus.WithMaxChannels(40), eventbus.WithFreshness(time.Hour), eventbus.WithKeepalive(time.Hour),
		eventbus.WithRetention(eventbus.Retention{Events: 10, Age: time.Hour})}, opts...)...)
}

// smallNodes is a Redis that trims a log almost exactly: a stream that begins with the
// oldest event is short.
func smallNodes(t testing.TB) *redis.Client {
	return redistest.Start(t, "--stream-node-max-entries", "4").Client(t)
}

// extremes are the numbers at which a decoder, a comparison or a subtraction goes wrong.
var extremes = []int64{-2, -1, 0, 1, 2, 1<<15 - 1, 1 << 31, 1<<48 - 1, 1 << 48, 1<<53 - 1, 1 << 53, 1<<63 - 1, -1 << 63}

func TestForgedCursorsBringNothingButWhatIsAllowed(t *testing.T) {
	t.Parallel()
	rdb := smallNodes(t)
	bus := still(t, rdb)
	elsewhere := newBus(t, rdb, quiet(), eventbus.WithPrefix("other:"))
	secrets := someChannels(3)
	for _, c := range secrets {
		publish(t, bus, projectOf(c), secrets, "not allowed")
		publish(t, elsewhere, projectOf(c), secrets, "not allowed")
	}
	for _, n := range []int{1, 2, 40} {
		t.Run(fmt.Sprint(n, " channels"), func(t *testing.T) {
			h := newHostile(bus, someChannels(n)...)
			ctx := deadline(t)
			for i := range 3 * n {
				h.happens(t, ctx, i)
			}
			for _, c := range h.allowed { // the other bus has other events in channels of these names
				publish(t, elsewhere, uuid.New(), []eventbus.Channel{c}, "not allowed")
			}
			h.resume(t) // now the channels are listened to

			var real []forgedEntry
			for _, c := range h.allowed {
				real = append(real, forgedAt(t, c, newest(t, rdb, c)))
			}
			changed := func(change func(e *forgedEntry)) forged {
				f := forged{entries: slices.Clone(real)}
				for i := range f.entries {
					change(&f.entries[i])
				}
				return f
			}
			cursors := map[string]fmt.Stringer{
				"as it is":           forged{entries: real},
				"far back":           changed(func(e *forgedEntry) { e.seq = 1 }),
				"before all":         changed(func(e *forgedEntry) { e.seq, e.epoch = 0, 0 }),
				"no log, long ago":   changed(func(e *forgedEntry) { e.seq, e.epoch = -1, 1 }),
				"no log, in future":  changed(func(e *forgedEntry) { e.seq, e.epoch = -1, 1<<48-1 }),
				"unknown":            changed(func(e *forgedEntry) { e.seq, e.epoch, e.mark = 0, 0, 1 }),
				"far ahead":          changed(func(e *forgedEntry) { e.seq = 1<<53 - 1 }),
				"another epoch":      changed(func(e *forgedEntry) { e.epoch++ }),
				"another event":      changed(func(e *forgedEntry) { e.mark = 0xFFFF }),
				"names of other bus": changed(func(e *forgedEntry) { e.name = "other:" + e.name }),
				"no entry":           forged{},
				"text":               bytesOf("\x00"),
				"255 entries":        bytesOf(append([]byte{0xE0, 255}, make([]byte, 255*8)...)),
				"255 of no bytes":    bytesOf([]byte{0xE0, 255}),
			}
			for salt := range byte(16) {
				cursors[fmt.Sprint("salt ", salt)] = forged{salt: salt, entries: real}
			}
			for _, seq := range extremes {
				for _, epoch := range extremes {
					if n > 1 && seq != epoch && epoch != 0 {
						continue // the time is better spent on few channels
					}
					cursors[fmt.Sprint("numbers ", seq, " ", epoch)] = changed(func(e *forgedEntry) { e.seq, e.epoch = seq, epoch })
				}
				holes := forged{entries: slices.Clone(real)}
				for i := range 8 * n {
					holes.holes = append(holes.holes, forgedHole{byte(i % n), seq, 0, max(seq-1, -1), 0})
				}
				cursors[fmt.Sprint("holes at ", seq)] = holes
				holes.holes = append(holes.holes, forgedHole{byte(n), seq, seq, seq, seq})
				cursors[fmt.Sprint("holes of no channel at ", seq)] = holes
			}
			var others []forgedEntry
			for _, c := range secrets {
				others = append(others, forgedAt(t, c, newest(t, rdb, c)))
			}
			cursors["other channels"] = forged{entries: others}
			cursors["these and other channels"] = forged{entries: append(others, real...)}
			cursors["each twice"] = forged{entries: append(slices.Clone(real), changed(func(e *forgedEntry) { e.seq = 1 }).entries...)}
			cursors["other numbers under these names"] = changed(func(e *forgedEntry) { e.seq, e.epoch = others[0].seq-1, others[0].epoch })

			for name, cursor := range cursors {
				if kind, _, more := strings.Cut(name, " "); n == 40 && more && (kind == "salt" || kind == "numbers" || kind == "holes") && rand.N(8) > 0 {
					continue // each costs 40 publishes
				}
				for way, ask := range map[string]with{"header": header(cursor.String()), "parameter": parameter(cursor.String())} {
					before := calls(t, rdb)
					func() {
						defer func() {
							if t.Failed() {
								t.Log(name, way, cursor.String())
							}
						}()
						h.resume(t, ask)
					}()
					// A page of each channel, once more where it is at its end, and what happened.
					requireBounded(t, rdb, before, 4*n+4)
				}
			}
		})
	}
}

type bytesOf []byte

func (b bytesOf) String() string { return base64.RawURLEncoding.EncodeToString(b) }

// A page of a log with a single event is not kept: each look at it is a call.
func TestGapsInManyChannelsCostEachOneOnce(t *testing.T) {
	rdb := smallNodes(t)
	h := newHostile(still(t, rdb), someChannels(40)...)
	for i := range h.allowed {
		h.happens(t, deadline(t), i)
	}
	joined(t, serve(t, h.handler)) // now the channels are listened to
	for _, id := range []string{"garbage", uuid.NewString(), forged{entries: []forgedEntry{{h.allowed[0].String(), 0, 0, 0}}}.String()} {
		before := calls(t, rdb)
		s := joined(t, serve(t, h.handler), lastEventID(id))
		for n := range h.allowed {
			if n == 0 || id == "garbage" || isUUID(id) {
				s.event()
			}
		}
		requireBounded(t, rdb, before, 5*len(h.allowed)) // one of them asks where the log ends
	}
}

func isUUID(id string) bool { return uuid.Validate(id) == nil }

// Every cursor that differs from a good one in one bit: of its bytes, and of its text.
func TestCursorWithOneBitFlipped(t *testing.T) {
	rdb := smallNodes(t)
	bus := still(t, rdb)
	h := newHostile(bus, someChannels(2)...)
	for i := range 6 {
		h.happens(t, deadline(t), i)
	}
	h.resume(t)
	good := forged{holes: []forgedHole{{0, 1, 0, 0, 0}, {1, 2, 0, 0, -1}}}
	for _, c := range h.allowed {
		good.entries = append(good.entries, forgedAt(t, c, newest(t, rdb, c)))
	}
	_, err := eventbus.ParseCursor(good.String())
	require.NoError(t, err)
	try := func(way func(string) with, id string) {
		before := calls(t, rdb)
		h.resume(t, way(id))
		requireBounded(t, rdb, before, 12)
	}
	for i := 0; i < 8*len(good.bytes()); i += 2 {
		b := good.bytes()
		b[i/8] ^= 1 << (i % 8)
		try(header, bytesOf(b).String())
	}
	for i := 0; i < 8*len(good.String()); i += 3 {
		b := []byte(good.String())
		b[i/8] ^= 1 << (i % 8)
		try(parameter, string(b))
	}
}

// Whatever numbers somebody writes into a cursor, the stream goes on to bring what
// happens next, each event once, after a bounded number of calls to Redis.
func FuzzForgedCursor(f *testing.F) {
	rdb, err := embedded.New()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = rdb.Close() })
	var sent atomic.Int64
	rdb.AddHook(countingHook{&sent, new(atomic.Int64)})
	h := newHostile(still(f, rdb), someChannels(2)...)
	for i := range 8 {
		h.happens(f, deadline(f), i)
	}
	here := forgedAt(f, h.allowed[0], newest(f, rdb, h.allowed[0]))
	there := forgedAt(f, h.allowed[1], newest(f, rdb, h.allowed[1]))
	for _, seq := range extremes {
		f.Add(byte(0), uint16(0), here.seq, int64(0), seq, int64(0), []byte{})
		f.Add(byte(1), uint16(1), seq, seq, here.seq, there.epoch-here.epoch, []byte{0, 2, 0, 1, 0})
		f.Add(byte(0), uint16(7), int64(2), int64(0), int64(2), there.epoch-here.epoch, slices.Repeat([]byte{1, byte(seq), byte(seq), 1, 1}, 8))
	}
	f.Fuzz(func(t *testing.T, salt byte, mark uint16, seqA, epochA, seqB, epochB int64, holes []byte) {
		c := forged{salt: salt, entries: []forgedEntry{
			{h.allowed[0].String(), mark, seqA, here.epoch + epochA}, {h.allowed[1].String(), mark, seqB, here.epoch + epochB},
		}}
		for hole := range slices.Chunk(holes, 5) {
			if len(hole) == 5 {
				c.holes = append(c.holes, forgedHole{hole[0] % 3, int64(int8(hole[1])), int64(int8(hole[2])), int64(int8(hole[3])), int64(int8(hole[4]))})
			}
		}
		before := sent.Load()
		got := h.resume(t, header(c.String()))
		for id, n := range got.events {
			require.Equal(t, 1, n, "event %s came %d times", id, n)
		}
		require.Less(t, sent.Load()-before, int64(40)) // a page of small events takes four commands
	})
}

// Nobody is shown anything of a channel that is not allowed, whatever is asked for; and
// the answer does not tell whether there is such a thing.
func TestNobodyReadsWhatIsNotAllowed(t *testing.T) {
	rdb := smallNodes(t)
	bus := still(t, rdb)
	secret := someChannels(3)
	publish(t, bus, projectOf(secret[0]), secret[1:], "not allowed", "not allowed")
	entries, err := rdb.XRange(t.Context(), logOf(secret[0]), "-", "+").Result()
	require.NoError(t, err)
	hidden := eventOf(t, entries[0])
	cursor, err := bus.Cursor(deadline(t), secret...)
	require.NoError(t, err)
	var behind, absent, absentBehind forged // from the first event on, and of channels that there are not
	for _, c := range secret {
		e := forgedAt(t, c, newest(t, rdb, c))
		absent.entries = append(absent.entries, forgedEntry{uuid.NewString(), e.mark, e.seq, e.epoch})
		e.seq = 0
		behind.entries = append(behind.entries, e)
		absentBehind.entries = append(absentBehind.entries, forgedEntry{uuid.NewString(), e.mark, e.seq, e.epoch})
	}

	// What there is, and beside it the same of what there is not.
	asks := map[string][2]string{
		"cursor":   {cursor.String(), absent.String()},
		"behind":   {behind.String(), absentBehind.String()},
		"UUID":     {hidden.ID, uuid.NewString()},
		"upper":    {strings.ToUpper(hidden.ID), strings.ToUpper(uuid.NewString())},
		"position": {entries[0].ID, "1763868000000-42"},
		"channel":  {secret[0].String(), eventbus.ProjectChannel(uuid.New()).String()},
		"log":      {logOf(secret[0]), "eventbus:log:{" + uuid.NewString() + "}"},
		"project":  {secret[0].ID(), uuid.NewString()},
	}
	ways := map[string]func(id string) with{
		"header":            header,
		"parameter":         parameter,
		"header, parameter": func(id string) with { return func(r *http.Request) { header(id)(r); parameter(id)(r) } },
		"parameter twice": func(id string) with {
			return func(r *http.Request) { r.URL.RawQuery = "last_event_id=" + id + "&last_event_id=" + id }
		},
	}
	for _, name := range []string{"channel", "channels", "project", "agent", "user", "after", "cursor", "oldest", "type", "Last-Event-ID", "lastEventId", "id"} {
		ways["?"+name] = func(id string) with {
			return func(r *http.Request) {
				parameter(id)(r)
				if name != "type" { // reads takes that one: it can only leave out
					query(name, cmp.Or(map[string]string{"oldest": "true", "channel": secret[0].String(), "channels": secret[0].String()}[name], secret[0].ID()))(r)
				}
			}
		}
	}

	for n := range 4 {
		if n == 0 {
			h := serve(t, handler(bus, reads()))
			for _, ask := range asks {
				for _, way := range ways {
					for _, id := range ask {
						resp, _ := get(t, h, way(id))
						require.Equal(t, http.StatusInternalServerError, resp.StatusCode)
					}
				}
			}
			continue
		}
		t.Run(fmt.Sprint(n, " allowed"), func(t *testing.T) {
			h := newHostile(bus, someChannels(n)...)
			for i := range 2 * n {
				h.happens(t, deadline(t), i)
			}
			for kind, ask := range asks {
				for name, way := range ways {
					was, isNot := h.resume(t, way(ask[0])), h.resume(t, way(ask[1]))
					for i := range was.gaps { // the position that is sent comes back
						was.gaps[i].From, isNot.gaps[i].From = "", ""
					}
					require.Equal(t, isNot.gaps, was.gaps, "%s in %s tells whether it exists", kind, name)
					if n == 1 || kind != "position" {
						require.Equal(t, len(isNot.events) > 1, len(was.events) > 1, "%s in %s", kind, name)
					}
				}
			}
		})
	}
}

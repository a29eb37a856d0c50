package eventbus

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Client is what the bus needs of a go-redis client. Every
// [redis.UniversalClient] is one: *redis.Client (also as made by
// redis.NewFailoverClient) and *redis.ClusterClient.
type Client interface {
	Process(ctx context.Context, cmd redis.Cmder) error
	Pipeline() redis.Pipeliner
	TxPipeline() redis.Pipeliner
	Subscribe(ctx context.Context, channels ...string) *redis.PubSub
}

// A shardedClient can listen to sharded Pub/Sub.
type shardedClient interface {
	SSubscribe(ctx context.Context, channels ...string) *redis.PubSub
}

// A clusterClient knows which node has a key.
type clusterClient interface {
	MasterForKey(ctx context.Context, key string) (*redis.Client, error)
	ReloadState(ctx context.Context)
}

// A redisLog is the Redis side of all logs: it appends, reads and searches, and
// knows nothing of who asks. It is safe for concurrent use.
type redisLog struct {
	client    Client
	prefix    string
	retention func(ChannelKind) Retention
	// perChannel says that logs of several channels cannot share a call,
	// because a cluster keeps them in different slots.
	perChannel bool
	cluster    clusterClient // nil where there is none
	sharded    bool          // SPUBLISH and SSUBSCRIBE take the place of PUBLISH and SUBSCRIBE
	scriptOnly atomic.Bool   // the server takes no transactions

	mu    sync.Mutex          // guards following
	heads map[string]Position // the newest position known to be in a log, by channel name
	// firsts are the ids of events that are being appended to logs of which no head is
	// known: one of them may begin the log.
	firsts map[first]int
}

// A first is an event on its way into a log that it may begin.
type first struct{ name, id string }

// maxHeads bounds the heads that are remembered; a forgotten one costs a look.
const maxHeads = 16384

// master gives the node of a cluster that has a channel and its log.
func (l *redisLog) master(ctx context.Context, name string) (*redis.Client, error) {
	// Without a name, a random one would be given.
	return l.cluster.MasterForKey(ctx, cmp.Or(name, "eventbus"))
}

// node is the address of the node that has a log, "" where there is but one or it is
// not known.
func (l *redisLog) node(ctx context.Context, name string) string {
	if l.cluster == nil {
		return ""
	}
	client, err := l.master(ctx, name)
	if err != nil {
		return ""
	}
	return client.Options().Addr
}

// carrier gives the node over whose connections a channel comes, and the client for
// them. The messages of plain Pub/Sub come over any.
func (l *redisLog) carrier(ctx context.Context, name string) (node string, client Client, err error) {
	if l.cluster == nil || !l.sharded {
		return "", l.client, nil
	}
	master, err := l.master(ctx, name)
	if err != nil {
		return "", nil, err
	}
	return master.Options().Addr, master, nil
}

// pubSub makes a Pub/Sub connection, as yet without channels.
func (l *redisLog) pubSub(ctx context.Context, client Client) *redis.PubSub {
	if sharded, ok := client.(shardedClient); ok && l.sharded {
		return sharded.SSubscribe(ctx)
	}
	return client.Subscribe(ctx)
}

// name is the channel's name in Redis.
func (l *redisLog) name(c Channel) string {
	return string(c.append(append(make([]byte, 0, 64), l.prefix...)))
}

// publish is the command that rings the doorbell.
func (l *redisLog) publish() string {
	if l.sharded {
		return "SPUBLISH"
	}
	return "PUBLISH"
}

func logKey(name string) string { return "eventbus:log:{" + name + "}" }

// markerTTL is how long the id of an event that was published again, or with Idempotent,
// is remembered beside its log.
const markerTTL = 10 * time.Minute

// head gives the newest position of a log that this process has seen, zero for none.
func (l *redisLog) head(name string) Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heads[name]
}

// saw remembers the newest position, given by a call before which the newest was
// another one. Calls may end in another order than they ran; but a number that is not
// beyond what was known before the call says that the log has lost its end.
func (l *redisLog) saw(name string, p, before Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	have, ok := l.heads[name]
	rewound := before.epoch == p.epoch && p.seq <= before.seq
	if ok && have.epoch == p.epoch && have.seq >= p.seq && !rewound {
		return
	} else if !ok && len(l.heads) >= maxHeads {
		for name := range l.heads { // any one will do
			delete(l.heads, name)
			break
		}
	}
	l.heads[name] = p
}

// expect notes, or with -1 forgets, that a record may begin its log.
func (l *redisLog) expect(r *record, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.firsts == nil {
		l.firsts = make(map[first]int)
	}
	f := first{r.name, r.id}
	if l.firsts[f] += n; l.firsts[f] == 0 {
		delete(l.firsts, f)
	}
}

// began tells whether this process has begun a log with the event. A message alone does
// not prove that: somebody may pass on what was published elsewhere.
func (l *redisLog) began(name string, ev *Event) bool {
	if ev.Position.seq != 1 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if head := l.heads[name]; head.epoch == ev.Position.epoch && head.seq >= 1 {
		return true
	}
	return l.firsts[first{name, ev.ID}] > 0
}

// replyError makes an error of what a command inside a script answered.
func replyError(reply string) error {
	if temporaryReply(reply) {
		return fmt.Errorf("%w: %s", ErrUnavailable, reply)
	}
	return errors.New(reply)
}

// unavailable marks temporary errors as such. A cluster may have another master by now,
// which go-redis would find out within a minute if it were not told.
func (l *redisLog) unavailable(err error) error {
	err = withoutArguments(err)
	if err == nil || errors.Is(err, ErrUnavailable) || !temporary(err) {
		return err
	}
	if l.cluster != nil {
		l.cluster.ReloadState(context.Background())
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// A logPage is the state of a log, and some consecutive entries of it.
type logPage struct {
	now     int64    // Redis time, ms
	last    Position // of the last append; zero when there is no log
	first   Position // of the oldest entry; zero when there is none
	expires int64    // Redis time at which the log will be dropped, 0 never
	asked   Position // where the read began; zero: at the oldest entry
	ids     string   // what verify asked for: lines of number and id
	entries []logEntry
	largest int // bytes of the largest event among them, and the oldest and the newest of the log
}

type logEntry struct {
	pos   Position
	event []byte
	also  string
}

// head is the position right behind the newest entry.
func (p *logPage) head() Position {
	if p.last.IsZero() {
		return Position{epoch: p.now, seq: noLog}
	}
	return p.last
}

// origin is the position right before the oldest entry.
func (p *logPage) origin() Position {
	switch {
	case p.last.IsZero():
		return Position{epoch: p.now, seq: noLog}
	case p.first.IsZero(): // everything was removed
		return p.last
	}
	return Position{epoch: p.first.epoch, seq: p.first.seq - 1}
}

// resume decides how a reader at pos goes on in the log: from which position,
// and whether something is missing before it ("" when not). age is how long the
// log outlives its last event, 0 for ever. The page's entries, if any, begin at
// or before pos. This is the one place that decides what a gap is.
func (p *logPage) resume(pos Position, age time.Duration) (Position, GapReason) {
	switch {
	case pos.IsZero():
		return p.origin(), ""
	case pos == unknown:
		return p.origin(), GapUnknown
	case pos.seq == noLog:
		// A log may have come and gone since, but only if it had time to expire.
		until := p.now
		if !p.last.IsZero() {
			until = p.last.epoch
		}
		if age > 0 && until-pos.epoch > age.Milliseconds() {
			return p.origin(), GapLost
		}
		if origin := p.origin(); origin.seq > 0 {
			return origin, GapTrimmed
		}
		return p.origin(), ""
	case p.last.epoch != pos.epoch: // also where there is no log
		return p.origin(), GapLost
	case pos.seq > p.last.seq || pos.seq == p.last.seq && !pos.same(p.last):
		return p.last, GapRewound
	}
	if origin := p.origin(); origin.seq > pos.seq || origin.epoch != pos.epoch {
		return origin, GapTrimmed
	}
	for i := range p.entries {
		switch e := &p.entries[i]; {
		case e.pos.seq < pos.seq:
		case e.pos.seq == pos.seq && !e.pos.same(pos):
			return e.pos, GapRewound
		case e.pos.seq > pos.seq && !e.pos.follows(pos) && p.asked.seq <= pos.seq:
			// Somebody has deleted entries. (A page that begins behind pos, read
			// for another reader, would not tell.)
			return Position{epoch: e.pos.epoch, seq: e.pos.seq - 1}, GapTrimmed
		case e.pos.seq > pos.seq:
			return pos, ""
		}
	}
	if p.asked.epoch == pos.epoch && p.asked.seq == pos.seq && pos.seq < p.last.seq {
		// A page that begins at pos always has the entry behind it, if there is one:
		// the newest ones were deleted.
		return p.last, GapTrimmed
	}
	return pos, ""
}

// after gives the entries behind pos, up to the first hole; resume has returned
// pos.
func (p *logPage) after(pos Position) []logEntry {
	for i := range p.entries {
		if p.entries[i].pos.follows(pos) {
			end := i + 1
			for end < len(p.entries) && p.entries[end].pos.follows(p.entries[end-1].pos) {
				end++
			}
			return p.entries[i:end]
		}
	}
	return nil
}

// A readRequest asks for a page of one log.
type readRequest struct {
	name   string
	from   Position // itself included; zero: from the oldest entry
	count  int      // 0: the state alone
	verify Position // also give the ids of the events from here to from; zero: none
	small  bool     // the events that are known are small: the page has no bound on bytes
}

// pageBytes is where a page of events ends, however few they are.
const pageBytes = 256 << 10

func (r readRequest) args() []any {
	from := "-"
	if r.from.epoch > 0 && r.from.seq >= 0 {
		from = string(r.from.append(nil))
	}
	verify := ""
	if !r.verify.IsZero() {
		verify = r.verify.String()
	}
	return []any{from, r.count, pageBytes, verify}
}

// read gives a page of a log.
func (l *redisLog) read(ctx context.Context, r readRequest) (*logPage, error) {
	before := l.head(r.name)
	var reply any
	var err error
	if small := l.readSmall(ctx, r); small != nil {
		reply = small
	} else {
		reply, err = readScript.run(ctx, l.client, []string{logKey(r.name)}, r.args()...)
	}
	if err != nil {
		return nil, fmt.Errorf("read log of %s: %w", r.name, l.unavailable(err))
	}
	page, err := parsePage(r.from, reply)
	l.compare(r.name, page, before)
	return page, err
}

// readSmall takes the entries of a page from XRANGE itself, in one transaction with the script for
// the state of the log: through Lua, they cost Redis four times as much. It is nil where the
// script has to read them after all.
func (l *redisLog) readSmall(ctx context.Context, r readRequest) []any {
	if !r.small || l.scriptOnly.Load() {
		return nil
	}
	args, key, count := r.args(), logKey(r.name), r.count
	r.count = 0
	state := readScript.cmd(ctx, false, []string{key}, r.args())
	entries := redis.NewCmd(ctx, "xrange", key, args[0], "+", "count", count)
	pipe := l.client.TxPipeline()
	// Once: the script is the second attempt. Process only queues.
	_, _ = pipe.Process(ctx, onceCmd{state}), pipe.Process(ctx, onceCmd{entries})
	if _, err := pipe.Exec(ctx); err != nil {
		if text := err.Error(); strings.HasPrefix(text, "NOPERM") || strings.Contains(text, "unknown command") {
			l.scriptOnly.Store(true)
		}
		return nil
	}
	reply, _ := state.Val().([]any)
	list, _ := entries.Val().([]any)
	return appendEntries(reply, list)
}

// appendEntries adds what XRANGE gives to a reply of read.lua, as that does; or gives nil.
func appendEntries(reply, list []any) []any {
	if len(reply) < stateParts {
		return nil
	}
	last, _ := reply[1].(string)
	epoch, _, _ := strings.Cut(last, "-")
	reply = slices.Grow(reply, 3*len(list))
	for _, item := range list {
		entry, _ := item.([]any)
		if len(entry) != 2 {
			return nil
		}
		id, _ := entry[0].(string)
		fields, _ := entry[1].([]any)
		if of, seq, _ := strings.Cut(id, "-"); of != epoch || seq == "0" {
			return nil // somebody else's
		}
		var event, also any
		for i := 0; i+1 < len(fields); i += 2 {
			switch fields[i] {
			case "event":
				event = fields[i+1]
			case "also":
				also = fields[i+1]
			}
		}
		reply = append(reply, entry[0], event, also)
	}
	return reply
}

// compare forgets a head that was in the log before this page was read, and is not any
// more: it was lost, or expired. Who begins now must not begin there.
func (l *redisLog) compare(name string, page *logPage, before Position) {
	if page == nil || before.IsZero() || page.last.epoch == before.epoch && page.last.seq >= before.seq {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.heads[name] != before: // there is newer word
	case page.last.IsZero():
		delete(l.heads, name)
	default:
		l.heads[name] = page.last
	}
}

// readMany reads pages of several logs in one round trip.
func (l *redisLog) readMany(ctx context.Context, requests []readRequest) ([]*logPage, []error) {
	pages, errs := make([]*logPage, len(requests)), make([]error, len(requests))
	cmds, before := make([]*redis.Cmd, len(requests)), make([]Position, len(requests))
	pipe := l.client.Pipeline()
	for i, r := range requests {
		before[i] = l.head(r.name)
		cmds[i] = readScript.cmd(ctx, false, []string{logKey(r.name)}, r.args())
		_ = pipe.Process(ctx, cmds[i]) // only queues
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, cmd := range cmds {
		reply, err := cmd.Val(), cmd.Err()
		if isNoScript(err) {
			// In a pipeline there is no falling back. The first EVAL loads the
			// script, so those after it succeed at the first try.
			reply, err = readScript.run(ctx, l.client, []string{logKey(requests[i].name)}, requests[i].args()...)
		}
		if err != nil {
			errs[i] = fmt.Errorf("read log of %s: %w", requests[i].name, l.unavailable(err))
			continue
		}
		pages[i], errs[i] = parsePage(requests[i].from, reply)
		l.compare(requests[i].name, pages[i], before[i])
	}
	return pages, errs
}

// stateParts is how many parts of a reply of read.lua are the state of the log.
const stateParts = 7

func parsePage(asked Position, reply any) (*logPage, error) {
	parts, ok := reply.([]any)
	if !ok || len(parts) < stateParts || (len(parts)-stateParts)%3 != 0 {
		return nil, fmt.Errorf("unexpected reply %T to read", reply)
	}
	text := func(i int) string { s, _ := parts[i].(string); return s }
	p := &logPage{asked: asked}
	var err error
	if p.now, err = strconv.ParseInt(text(0), 10, 64); err != nil {
		return nil, fmt.Errorf("unexpected time in reply to read: %w", err)
	}
	if text(1) == "" {
		return p, nil
	}
	if p.last, err = ParsePosition(text(1)); err != nil {
		return nil, err
	}
	if id := text(4); id != "" {
		p.last.mark = fingerprint(id)
	}
	if ttl, _ := parts[2].(int64); ttl >= 0 {
		p.expires = p.now + ttl
	}
	if text(3) != "" {
		if p.first, err = ParsePosition(text(3)); err != nil {
			return nil, err
		}
	}
	p.ids = text(5)
	p.largest, _ = strconv.Atoi(text(6))
	p.entries = make([]logEntry, 0, (len(parts)-stateParts)/3)
	for i := stateParts; i < len(parts); i += 3 {
		e := logEntry{event: []byte(text(i + 1)), also: text(i + 2)}
		if e.pos, err = ParsePosition(text(i)); err != nil {
			return nil, err
		}
		e.pos.mark = fingerprint(eventID(e.event))
		p.entries = append(p.entries, e)
		p.largest = max(p.largest, len(e.event))
	}
	return p, nil
}

// eventID gives the id of an event as this bus writes it, nil for anything else: the
// same as read.lua.
func eventID(event []byte) []byte {
	s, ok := bytes.CutPrefix(event, []byte(`{"id":"`))
	end := bytes.IndexAny(s, `"\`)
	if !ok || end < 0 || s[end] != '"' {
		return nil
	}
	return s[:end]
}

// find searches a log from its newest entry back for the event with this id, in
// steps that do not hold Redis up for long.
func (l *redisLog) find(ctx context.Context, name, id string) (Position, bool, error) {
	const step = 100
	from := "+"
	for from != "" {
		reply, err := findScript.run(ctx, l.client, []string{logKey(name)}, id, from, step)
		if err != nil {
			return Position{}, false, fmt.Errorf("search log of %s: %w", name, l.unavailable(err))
		}
		parts, ok := reply.([]any)
		if !ok || len(parts) != 2 {
			return Position{}, false, fmt.Errorf("unexpected reply %T to find", reply)
		}
		if at, _ := parts[0].(string); at != "" {
			pos, err := ParsePosition(at)
			pos.mark = fingerprint(id)
			return pos, err == nil, err
		}
		from, _ = parts[1].(string)
	}
	return Position{}, false, nil
}

//go:embed probe.lua
var probeSource string

// probe tells, by trying, whether the server can do what the bus needs.
func (l *redisLog) probe(ctx context.Context) error {
	key := func(tag string) string { return "eventbus:probe:{" + l.prefix + tag + "}" }
	s := newScript(probeSource)
	_, err := s.run(ctx, l.client, []string{key("a"), key("b")}, l.publish())
	if err != nil && strings.Contains(err.Error(), "CROSSSLOT") {
		l.perChannel = true
		l.cluster, _ = l.client.(clusterClient)
		_, err = s.run(ctx, l.client, []string{key("a")}, l.publish())
	}
	if _, ok := l.client.(shardedClient); err == nil && l.sharded && (!ok || l.perChannel && l.cluster == nil) {
		return fmt.Errorf("%w: sharded Pub/Sub needs a client with SSubscribe and, for a cluster, MasterForKey and ReloadState", ErrUnsupported)
	}
	if err == nil {
		return nil
	}
	err = withoutArguments(err)
	var server redis.Error
	if !errors.As(err, &server) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	advice := ""
	switch text := err.Error(); {
	case strings.Contains(text, "READONLY"):
		advice = "the client sends writes to a replica; give it the master (no ReplicaOnly)"
	case strings.Contains(text, "NOPERM"), strings.Contains(text, "can't run this command"):
		advice = "the ACL user needs EVAL, EVALSHA, XADD, XDEL, XSETID, XRANGE, XREVRANGE, XINFO, EXISTS, GET, SET, PEXPIRE, PERSIST, PTTL, TIME, DEL, " +
			"MULTI, EXEC, PUBLISH, SUBSCRIBE and UNSUBSCRIBE (sharded: SPUBLISH, SSUBSCRIBE and SUNSUBSCRIBE) and PING, on keys eventbus:* and on the channels"
	case strings.Contains(text, "Invalid stream ID"), strings.Contains(text, "wrong number of arguments"), strings.Contains(strings.ToLower(text), "unknown redis command"), strings.Contains(text, "unknown command"):
		advice = "Redis 7.0 or later is needed, for XADD with <ms>-*"
	case temporaryReply(text):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return fmt.Errorf("%w: %s (%w)", ErrUnsupported, advice, err)
}

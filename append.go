package eventbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/syndarix/eventbus/internal/position"
)

// A record is an event on its way into one log, and what became of it.
type record struct {
	channel string
	mark    uint16            // fingerprint of the event
	pos     position.Position // where it is; zero while that is not known
	again   bool              // the log had it already
	err     error
	sure    bool // the error says for certain that the log does not have it
}

// settled reports whether another attempt would change nothing.
func (r *record) settled() bool {
	return !r.pos.IsZero() || r.err != nil && !errors.Is(r.err, errUnavailable)
}

// A commit is one event on its way into logs that one call can reach.
type commit struct {
	id         string // of the event
	event      []byte // its JSON without position
	idempotent bool
	also       string // where it is in logs before these
	records    []record
	done       chan struct{}         // closed when it is known what became of the records
	callers    atomic.Int32          // how many wait for that
	failing    atomic.Pointer[error] // why the last attempt has failed
}

// pending gives the records that are not in their logs yet, and where the event is before them.
func (c *commit) pending(l *redisLog) (records []record, also string) {
	i, also := 0, c.also
	for ; i < len(c.records) && !c.records[i].pos.IsZero(); i++ {
		also = strings.TrimPrefix(also+" "+l.name(c.records[i].channel)+"@"+c.records[i].pos.String(), " ")
	}
	return c.records[i:], also
}

// settled reports whether another attempt would change nothing.
func (c *commit) settled() bool {
	for i := range c.records {
		if !c.records[i].settled() {
			return false
		}
	}
	return true
}

// An appendCall is one call of append.lua. It takes effect once, however often it is sent.
type appendCall struct {
	scriptCall
	producer string
	number   int64
	commits  []*commit // that are not settled yet
	logs     []logCall
	lost     bool // the answer to an attempt was lost: it may have run
	moving   bool // the last attempt was refused because a cluster moves a slot
}

// A logCall is what a call has for one log.
type logCall struct {
	channel string
	records []*record // in the order of its events
}

// markerTTL is how long the id of an event that was published with Idempotent is remembered
// beside its log.
const markerTTL = 10 * time.Minute

// newAppendCall makes the call of a producer with this number.
func (l *redisLog) newAppendCall(producer string, number int64, commits []*commit) *appendCall {
	c := &appendCall{producer: producer, number: number, commits: commits}
	index := make(map[string]int, 1)
	for _, commit := range commits {
		records, _ := commit.pending(l)
		for i := range records {
			c.add(index, &records[i], len(commits))
		}
	}
	c.keys = make([]string, 0, 2*len(c.logs))
	c.args = make([]any, 0, 5+4*len(c.logs)+3*len(commits))
	c.args = append(c.args, len(c.logs), producer, number, l.publish(), markerTTL.Milliseconds())
	for _, log := range c.logs {
		name := l.name(log.channel)
		keep, age := l.retention(kind(log.channel))
		if keep == 0 {
			keep = position.MaxSeq
		}
		c.keys = append(c.keys, logKey(name), producersKey(name))
		c.args = append(c.args, name, keep, age.Milliseconds(), l.least(log.channel))
	}
	run, at := "", 0 // where the last run goes, and the index of its length
	for _, commit := range commits {
		where := l.where(c, index, commit)
		if where == run && !strings.Contains(where, "|") {
			c.args[at] = c.args[at].(int) + 1
		} else {
			run, at = where, len(c.args)
			c.args = append(c.args, 1, where)
		}
		c.args = append(c.args, commit.event)
	}
	return c
}

// newAppendCalls makes one call of a batch; in a cluster one for each channel, as hardly any two
// share a slot.
func (l *redisLog) newAppendCalls(producer string, number int64, batch []*commit) []*appendCall {
	if !l.perChannel {
		return []*appendCall{l.newAppendCall(producer, number, batch)}
	}
	var order []string
	parts := make(map[string][]*commit)
	for _, c := range batch {
		name := c.records[0].channel // there is no other
		if parts[name] == nil {
			order = append(order, name)
		}
		parts[name] = append(parts[name], c)
	}
	calls := make([]*appendCall, len(order))
	for i, name := range order {
		calls[i] = l.newAppendCall(producer, number, parts[name])
	}
	return calls
}

// add enters a record into the call of its log, one of so many perhaps.
func (c *appendCall) add(index map[string]int, r *record, most int) {
	i, ok := index[r.channel]
	if !ok {
		i = len(c.logs)
		index[r.channel] = i
		c.logs = append(c.logs, logCall{channel: r.channel})
	} else if cap(c.logs[i].records) == 1 {
		c.logs[i].records = append(make([]*record, 0, most), c.logs[i].records...)
	}
	c.logs[i].records = append(c.logs[i].records, r)
}

// where tells append.lua where an event goes, and adds the keys of its markers.
func (l *redisLog) where(c *appendCall, index map[string]int, commit *commit) string {
	records, also := commit.pending(l)
	if len(records) == 1 && also == "" && !commit.idempotent {
		return strconv.Itoa(index[records[0].channel] + 1) // Lua counts from 1
	}
	logs := make([]string, len(records))
	for i := range records {
		logs[i] = strconv.Itoa(index[records[i].channel] + 1)
	}
	first := ""
	if commit.idempotent {
		first = strconv.Itoa(len(c.keys) + 1)
		for i := range records {
			c.keys = append(c.keys, markerKey(l.name(records[i].channel), strings.ToLower(commit.id)))
		}
	}
	return strings.Join(logs, ",") + "|" + first + "|" + also
}

// send makes one attempt at calls, in one round trip, and gives back those that are not settled.
func (l *redisLog) send(ctx context.Context, calls []*appendCall) (left []*appendCall) {
	scripts := make([]scriptCall, len(calls))
	for i, c := range calls {
		scripts[i] = c.scriptCall
	}
	for i, cmd := range appendScript.runOnce(ctx, l.client, scripts) {
		if c := l.settle(calls[i], cmd); c != nil {
			left = append(left, c)
		}
	}
	return left
}

// settle enters what Redis answered to a call, and gives the call that is left to be made; nil where
// there is none.
func (l *redisLog) settle(c *appendCall, cmd *redis.Cmd) *appendCall {
	reply, err := cmd.Result()
	replies, ok := reply.([]any)
	if err == nil && (!ok || len(replies) != len(c.logs)) {
		err = fmt.Errorf("unexpected reply %T to append", reply)
	}
	c.moving = false
	if err != nil {
		// A script that a server refuses, or that it ends with an error, has appended nothing.
		var server redis.Error
		answered := errors.As(err, &server)
		c.lost = c.lost || !answered && !neverSent(err)
		c.moving = answered && movingReply(server.Error())
		c.fail(l.unavailable(err))
	} else {
		for i, log := range c.logs {
			l.saw(log.channel, log.settle(replies[i], c.lost))
		}
	}
	before := len(c.commits)
	c.commits = slices.DeleteFunc(c.commits, (*commit).finish)
	switch {
	case len(c.commits) == 0:
		return nil
	case len(c.commits) < before && !c.lost:
		// What was answered for good must not be tried again. (Where an attempt was lost, it may
		// still come, so the number must stay: then all of the call is repeated.)
		return l.newAppendCall(c.producer, c.number+1, c.commits)
	}
	return c
}

// finish closes a commit that is settled, and reports whether it is.
func (c *commit) finish() bool {
	if c.settled() {
		c.close()
		return true
	}
	for i := range c.records {
		if err := c.records[i].err; err != nil {
			c.failing.Store(&err)
		}
	}
	return false
}

// close says that no more will be known.
func (c *commit) close() {
	c.event = nil
	close(c.done)
}

// fail enters an error for all records of which nothing better is known.
func (c *appendCall) fail(err error) {
	for _, log := range c.logs {
		for _, r := range log.records {
			if !r.settled() {
				r.err, r.sure = err, !c.lost
			}
		}
	}
}

// settle enters the answer for one log, and gives the last position in it.
func (c *logCall) settle(reply any, lost bool) (last position.Position) {
	s, _ := reply.(string)
	items := strings.Split(s, "\n")
	for n, r := range c.records {
		switch {
		case r.settled(): // by an earlier attempt, and its caller may look at it
			continue
		case len(items) == len(c.records):
			*r = parseItem(*r, items[n], 0)
		case len(items) == 1 && strings.HasPrefix(s, "+"):
			*r = parseItem(*r, s, int64(n))
		default:
			*r = parseItem(*r, "", 0)
		}
		if !r.pos.IsZero() {
			r.pos.Mark = r.mark
			last = r.pos
		}
		r.sure = r.sure && !lost // or else what was on its way can still come
	}
	return last
}

// parseItem reads the answer for an event, the n-th behind the one that it is about.
func parseItem(r record, item string, n int64) record {
	r.err, r.sure = nil, false
	kind := ""
	if item != "" {
		kind, item = item[:1], item[1:]
	}
	at, rest, _ := strings.Cut(item, " ")
	switch kind {
	case "!":
		r.err, r.sure = replyError(item), true
		return r
	case "+", "=", "~":
		if r.pos, r.err = position.Parse(at); r.err == nil {
			r.pos.Seq += n
		}
	default:
		r.err = errors.New("unexpected reply to append")
	}
	r.again = kind == "="
	if kind == "~" {
		r.err = fmt.Errorf("the event is in the log, but its subscribers hear of it later: %w", errors.New(rest))
	}
	return r
}

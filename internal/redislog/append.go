package redislog

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

// A Record is an event on its way into one log, and what became of it.
type Record struct {
	Channel string
	Mark    uint16            // fingerprint of the event
	Pos     position.Position // where it is; zero while that is not known
	Again   bool              // the log had it already
	Err     error
	Sure    bool // the error says for certain that the log does not have it
}

// settled reports whether another attempt would change nothing.
func (r *Record) settled() bool {
	return !r.Pos.IsZero() || r.Err != nil && !errors.Is(r.Err, ErrUnavailable)
}

// A Commit is one event on its way into logs that one call can reach.
type Commit struct {
	ID         string // of the event
	Event      []byte // its JSON without position
	Idempotent bool
	Also       string // where it is in logs before these
	Records    []Record
	Done       chan struct{}         // closed when it is known what became of the records
	Callers    atomic.Int32          // how many wait for that
	Failing    atomic.Pointer[error] // why the last attempt has failed
}

// Pending gives the records that are not in their logs yet, and where the event is before them.
func (c *Commit) Pending(l *Log) (records []Record, also string) {
	i, also := 0, c.Also
	for ; i < len(c.Records) && !c.Records[i].Pos.IsZero(); i++ {
		also = strings.TrimPrefix(also+" "+l.Name(c.Records[i].Channel)+"@"+c.Records[i].Pos.String(), " ")
	}
	return c.Records[i:], also
}

// Settled reports whether another attempt would change nothing.
func (c *Commit) Settled() bool {
	for i := range c.Records {
		if !c.Records[i].settled() {
			return false
		}
	}
	return true
}

// An Call is one call of append.lua. It takes effect once, however often it is sent.
type Call struct {
	scriptCall
	producer string
	number   int64
	Commits  []*Commit // that are not settled yet
	logs     []logCall
	Lost     bool // the answer to an attempt was lost: it may have run
	Moving   bool // the last attempt was refused because a cluster moves a slot
}

// A logCall is what a call has for one log.
type logCall struct {
	channel string
	records []*Record // in the order of its events
}

// markerTTL is how long the id of an event that was published with Idempotent is remembered
// beside its log.
const markerTTL = 10 * time.Minute

// NewCall makes the call of a producer with this number.
func (l *Log) NewCall(producer string, number int64, commits []*Commit) *Call {
	c := &Call{producer: producer, number: number, Commits: commits}
	index := make(map[string]int, 1)
	for _, commit := range commits {
		records, _ := commit.Pending(l)
		for i := range records {
			c.add(index, &records[i], len(commits))
		}
	}
	c.keys = make([]string, 0, 2*len(c.logs))
	c.args = make([]any, 0, 5+4*len(c.logs)+3*len(commits))
	c.args = append(c.args, len(c.logs), producer, number, l.publish(), markerTTL.Milliseconds())
	for _, log := range c.logs {
		name := l.Name(log.channel)
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
		c.args = append(c.args, commit.Event)
	}
	return c
}

// NewCalls makes one call of a batch; in a cluster one for each channel, as hardly any two
// share a slot.
func (l *Log) NewCalls(producer string, number int64, batch []*Commit) []*Call {
	if !l.PerChannel {
		return []*Call{l.NewCall(producer, number, batch)}
	}
	var order []string
	parts := make(map[string][]*Commit)
	for _, c := range batch {
		name := c.Records[0].Channel // there is no other
		if parts[name] == nil {
			order = append(order, name)
		}
		parts[name] = append(parts[name], c)
	}
	calls := make([]*Call, len(order))
	for i, name := range order {
		calls[i] = l.NewCall(producer, number, parts[name])
	}
	return calls
}

// add enters a record into the call of its log, one of so many perhaps.
func (c *Call) add(index map[string]int, r *Record, most int) {
	i, ok := index[r.Channel]
	if !ok {
		i = len(c.logs)
		index[r.Channel] = i
		c.logs = append(c.logs, logCall{channel: r.Channel})
	} else if cap(c.logs[i].records) == 1 {
		c.logs[i].records = append(make([]*Record, 0, most), c.logs[i].records...)
	}
	c.logs[i].records = append(c.logs[i].records, r)
}

// where tells append.lua where an event goes, and adds the keys of its markers.
func (l *Log) where(c *Call, index map[string]int, commit *Commit) string {
	records, also := commit.Pending(l)
	if len(records) == 1 && also == "" && !commit.Idempotent {
		return strconv.Itoa(index[records[0].Channel] + 1) // Lua counts from 1
	}
	logs := make([]string, len(records))
	for i := range records {
		logs[i] = strconv.Itoa(index[records[i].Channel] + 1)
	}
	first := ""
	if commit.Idempotent {
		first = strconv.Itoa(len(c.keys) + 1)
		for i := range records {
			c.keys = append(c.keys, markerKey(l.Name(records[i].Channel), strings.ToLower(commit.ID)))
		}
	}
	return strings.Join(logs, ",") + "|" + first + "|" + also
}

// Send makes one attempt at calls, in one round trip, and gives back those that are not settled.
func (l *Log) Send(ctx context.Context, calls []*Call) (left []*Call) {
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
func (l *Log) settle(c *Call, cmd *redis.Cmd) *Call {
	reply, err := cmd.Result()
	replies, ok := reply.([]any)
	if err == nil && (!ok || len(replies) != len(c.logs)) {
		err = fmt.Errorf("unexpected reply %T to append", reply)
	}
	c.Moving = false
	if err != nil {
		// A script that a server refuses, or that it ends with an error, has appended nothing.
		var server redis.Error
		answered := errors.As(err, &server)
		c.Lost = c.Lost || !answered && !neverSent(err)
		c.Moving = answered && movingReply(server.Error())
		c.fail(l.unavailable(err))
	} else {
		for i, log := range c.logs {
			l.saw(log.channel, log.settle(replies[i], c.Lost))
		}
	}
	before := len(c.Commits)
	c.Commits = slices.DeleteFunc(c.Commits, (*Commit).finish)
	switch {
	case len(c.Commits) == 0:
		return nil
	case len(c.Commits) < before && !c.Lost:
		// What was answered for good must not be tried again. (Where an attempt was lost, it may
		// still come, so the number must stay: then all of the call is repeated.)
		return l.NewCall(c.producer, c.number+1, c.Commits)
	}
	return c
}

// finish closes a commit that is settled, and reports whether it is.
func (c *Commit) finish() bool {
	if c.Settled() {
		c.Close()
		return true
	}
	for i := range c.Records {
		if err := c.Records[i].Err; err != nil {
			c.Failing.Store(&err)
		}
	}
	return false
}

// Closed reports whether no more will be known.
func (c *Commit) Closed() bool {
	select {
	case <-c.Done:
		return true
	default:
		return false
	}
}

// Close says that no more will be known.
func (c *Commit) Close() {
	c.Event = nil
	close(c.Done)
}

// fail enters an error for all records of which nothing better is known.
func (c *Call) fail(err error) {
	for _, log := range c.logs {
		for _, r := range log.records {
			if !r.settled() {
				r.Err, r.Sure = err, !c.Lost
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
			r.settle(items[n], 0)
		case len(items) == 1 && strings.HasPrefix(s, "+"):
			r.settle(s, int64(n))
		default:
			r.settle("", 0)
		}
		if !r.Pos.IsZero() {
			r.Pos.Mark = r.Mark
			last = r.Pos
		}
		r.Sure = r.Sure && !lost // or else what was on its way can still come
	}
	return last
}

// settle enters the answer for an event, the n-th behind the one that it is about.
func (r *Record) settle(item string, n int64) {
	r.Err, r.Sure = nil, false
	kind := ""
	if item != "" {
		kind, item = item[:1], item[1:]
	}
	at, rest, _ := strings.Cut(item, " ")
	switch kind {
	case "!":
		r.Err, r.Sure = replyError(item), true
		return
	case "+", "=", "~":
		if r.Pos, r.Err = position.Parse(at); r.Err == nil {
			r.Pos.Seq += n
		}
	default:
		r.Err = errors.New("unexpected reply to append")
	}
	r.Again = kind == "="
	if kind == "~" {
		r.Err = fmt.Errorf("the event is in the log, but its subscribers hear of it later: %w", errors.New(rest))
	}
}

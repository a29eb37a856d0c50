package redislog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/syndarix/eventbus/internal/position"
)

// A Call is one call of append.lua. It takes effect once, however often it is sent.
type Call struct {
	scriptCall
	producer string
	number   int64
	Batches  []*Batch // the ones that are not done yet
	logs     []logCall
	Lost     bool // The reply to an attempt was lost, so the call may have run.
	Moving   bool // The last attempt was refused because a cluster moves a slot.
}

// A logCall is what a call has for one log.
type logCall struct {
	channel string
	records []*Record // in the order of its events
}

// markerTTL is how long the marker of an Idempotent event lives.
const markerTTL = 10 * time.Minute

// newCall makes the call of a producer with this number. append.lua says what is in the arguments.
func (l *Log) newCall(producer string, number int64, batches []*Batch) *Call {
	c := &Call{producer: producer, number: number, Batches: batches}
	index := make(map[string]int, 1)
	open := c.Open()
	for _, batch := range batches {
		for _, commit := range batch.Commits {
			records, _ := l.Pending(commit.Also, commit.Records)
			for i := range records {
				c.add(index, &records[i], open)
			}
		}
	}
	c.keys = make([]string, 0, 2*len(c.logs))
	c.args = make([]any, 0, 5+5*len(c.logs)+3*open)
	c.args = append(c.args, len(c.logs), producer, number, l.publish(), markerTTL.Milliseconds())
	for _, log := range c.logs {
		name := l.Name(log.channel)
		keep := l.retention(kind(log.channel))
		if keep.Events == 0 {
			keep.Events = position.MaxSeq
		}
		c.keys = append(c.keys, logKey(name), producersKey(name))
		c.args = append(c.args, name, keep.Events, keep.Bytes, keep.Age.Milliseconds(), l.least(log.channel))
	}
	run, at := "", 0 // the last run's where, and the index of its length
	for _, batch := range batches {
		for _, commit := range batch.Commits {
			where := l.where(c, index, commit)
			if where == run && !strings.Contains(where, "|") {
				c.args[at] = c.args[at].(int) + 1
			} else {
				run, at = where, len(c.args)
				c.args = append(c.args, 1, where)
			}
			c.args = append(c.args, commit.Event)
		}
	}
	return c
}

// Open is how many commits of the call are not closed.
func (c *Call) Open() (n int) {
	for _, batch := range c.Batches {
		n += len(batch.Commits)
	}
	return n
}

// NewCalls makes one call of batches, or, in a cluster, one for each channel, as hardly any two
// share a slot. They share a number, as each goes to another log.
func (l *Log) NewCalls(producer string, number int64, batches []*Batch) []*Call {
	if !l.PerChannel {
		return []*Call{l.newCall(producer, number, batches)}
	}
	var order []string
	parts := make(map[string][]*Batch)
	for _, b := range batches {
		name := b.Commits[0].Records[0].Channel // In a cluster a commit has one record.
		if parts[name] == nil {
			order = append(order, name)
		}
		parts[name] = append(parts[name], b)
	}
	calls := make([]*Call, len(order))
	for i, name := range order {
		calls[i] = l.newCall(producer, number, parts[name])
	}
	return calls
}

// add enters a record into the call. most is how many records one log can get.
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

// where gives the argument that says to which logs an event goes, and adds the keys of its markers.
func (l *Log) where(c *Call, index map[string]int, commit *Commit) string {
	records, also := l.Pending(commit.Also, commit.Records)
	number := func(r *Record) string {
		n := strconv.Itoa(index[r.Channel] + 1) // Lua counts from 1.
		if r.Final {
			n += "!"
		}
		return n
	}
	if len(records) == 1 && also == "" && !commit.Idempotent {
		return number(&records[0])
	}
	logs := make([]string, len(records))
	for i := range records {
		logs[i] = number(&records[i])
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

// Send makes one attempt at calls, in one round trip, and gives the calls that are left to be made.
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

// settle enters what Redis answered to a call, and gives the call that is left to be made, nil
// where all is settled.
func (l *Log) settle(c *Call, cmd *redis.Cmd) *Call {
	reply, err := cmd.Result()
	replies, ok := reply.([]any)
	if err == nil && (!ok || len(replies) != len(c.logs)) {
		err = fmt.Errorf("unexpected reply %T to append", reply)
	}
	c.Moving = false
	if err != nil {
		// If the server answers with an error, the script has appended nothing.
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
	before := c.Open()
	c.Batches = slices.DeleteFunc(c.Batches, func(b *Batch) bool { return b.finish(c.Lost) })
	return l.rest(c, before)
}

// GiveUp closes the batches of a call that tired reports, and gives the call that is left to be
// made, nil where there is none. A call that may have run has to be given up as a whole.
func (l *Log) GiveUp(c *Call, tired func(*Batch) bool) *Call {
	before := c.Open()
	c.Batches = slices.DeleteFunc(c.Batches, func(b *Batch) bool {
		given := tired(b)
		if given {
			b.giveUp()
		}
		return given
	})
	return l.rest(c, before)
}

// rest gives the call for those commits of c that are not closed. before is how many they were.
func (l *Log) rest(c *Call, before int) *Call {
	switch open := c.Open(); {
	case open == 0:
		return nil
	case open < before && !c.Lost:
		// What is closed must not be tried again, so the rest is a new call. After a lost attempt
		// the number has to stay, because that attempt may still come: all of the call is repeated.
		return l.newCall(c.producer, c.number+1, c.Batches)
	}
	return c
}

// fail enters an error in all records that are not settled.
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
		case r.settled(): // An earlier attempt has settled it, and its caller may be reading it.
			continue
		case len(items) == len(c.records):
			r.settle(items[n], 0)
		case len(items) == 1 && strings.HasPrefix(s, "+"):
			r.settle(s, int64(n))
		default:
			r.settle("", 0)
		}
		if !r.Pos.IsZero() {
			r.Pos.Fingerprint = r.Fingerprint
			last = r.Pos
		}
		r.Sure = r.Sure && !lost // A lost attempt can still come and append the event.
	}
	return last
}

// settle enters the answer for an event. item is about the event n places before this one.
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
		r.Err = fmt.Errorf("the event is in the log, but not all of its publish has run: %w", errors.New(rest))
	}
}

package eventbus

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// rewindable is how many entries a failover may take back between the attempts of one
// publish, for the second to find what the first has appended.
const rewindable = 1000

// A record is an event on its way into one log.
type record struct {
	name  string // the channel, as Redis knows it
	kind  ChannelKind
	event []byte // its JSON without cursor
	id    string
	also  string // where other calls have found or appended it, as in append.lua

	idempotent bool     // look for a marker, and leave one
	only       bool     // look for it, and append nothing
	look       int      // search that many of the newest entries for the id, and leave a marker
	since      Position // but none that the log had before the first attempt, which was made then
}

// An appended is what became of a record.
type appended struct {
	pos   Position // where it is, also with an error; zero if that is not known or it is not there
	err   error
	again bool   // the log had it already,
	also  string // and its entry notes this
	sure  bool   // the error, if any, says for certain that the log does not have it
	whole bool   // the error is of a whole call: Redis has said nothing of this record
}

// done tells whether it is in the log, without an error.
func (a *appended) done() bool { return a.err == nil && !a.pos.IsZero() }

// A group has one reply: the records of a log that are nothing but appended, in a row; or a
// single one that needs more than that.
type group struct {
	log     int // index of its log in the call
	records []int
}

// plain tells whether a record is only to be appended.
func (r *record) plain() bool { return !r.idempotent && r.look == 0 && r.also == "" }

// continues tells whether r is the same publication as s, for another log.
func (r *record) continues(s *record) bool { return &r.event[0] == &s.event[0] }

// how is what append.lua is to do beside appending.
func (r *record) how(head Position) string {
	if r.plain() {
		return ""
	}
	since, marker := "", ""
	if r.since.epoch == head.epoch && r.since.seq > rewindable {
		since = strconv.FormatInt(r.since.seq-rewindable, 10)
	}
	if r.only {
		marker = "?"
	} else if r.idempotent || r.look > 0 {
		marker = "1"
	}
	return fmt.Sprintf("%s|%d|%s|%s|%s", r.id, r.look, since, marker, r.also)
}

// An appendCall is one call of append.lua, for records whose logs may share one.
type appendCall struct {
	records []*record
	keys    []string
	heads   []Position // by log, before the call
	groups  []group
	args    []any
	expects []*record // noted by expect
}

func (l *redisLog) newAppendCall(records []*record) *appendCall {
	c := &appendCall{records: records}
	index := make(map[string]int, 4)
	plain, firsts := make([]group, 0, 4), make([]*record, 0, 4) // by log
	var others []group
	for i, r := range records {
		log, ok := index[r.name]
		if !ok {
			log = len(c.keys)
			index[r.name] = log
			c.keys = append(c.keys, logKey(r.name))
			c.heads = append(c.heads, l.head(r.name))
			plain, firsts = append(plain, group{log: log}), append(firsts, r)
		}
		if r.look == 0 && !r.idempotent && r.since.IsZero() {
			r.since = c.heads[log] // should this call have to be repeated
		}
		if c.heads[log].IsZero() {
			l.expect(r, 1)
			c.expects = append(c.expects, r)
		}
		if !r.plain() || i > 0 && r.continues(records[i-1]) || i+1 < len(records) && records[i+1].continues(r) {
			others = append(others, group{log, []int{i}})
		} else {
			plain[log].records = append(plain[log].records, i)
		}
	}
	c.args = make([]any, 0, 2+5*len(plain)+len(records)+2*len(others))
	c.args = append(c.args, markerTTL.Milliseconds(), l.publish())
	for log, g := range plain {
		keep, epoch := l.retention(firsts[log].kind), ""
		if !c.heads[log].IsZero() {
			epoch = strconv.FormatInt(c.heads[log].epoch, 10)
		}
		c.args = append(c.args, firsts[log].name, keep.Events, keep.Age.Milliseconds(), epoch, len(g.records))
		for _, i := range g.records {
			c.args = append(c.args, records[i].event)
		}
		if len(g.records) > 0 {
			c.groups = append(c.groups, g)
		}
	}
	for _, g := range others {
		i := g.records[0]
		r := records[i]
		event := r.event
		if i > 0 && r.continues(records[i-1]) {
			event = nil
		}
		c.args = append(c.args, g.log+1, event, r.how(c.heads[g.log])) // Lua counts from 1
	}
	c.groups = append(c.groups, others...)
	return c
}

// append makes calls in one round trip, each for records whose logs may share one, and
// gives the results of each. It does not repeat anything by itself.
func (l *redisLog) append(ctx context.Context, calls [][]*record) [][]appended {
	made, scripts := make([]*appendCall, len(calls)), make([]scriptCall, len(calls))
	for i, records := range calls {
		made[i] = l.newAppendCall(records)
		scripts[i] = scriptCall{made[i].keys, made[i].args}
	}
	results := make([][]appended, len(calls))
	for i, cmd := range appendScript.runOnce(ctx, l.client, scripts) {
		results[i] = l.settle(made[i], cmd)
	}
	return results
}

// settle gives what became of a call's records.
func (l *redisLog) settle(c *appendCall, cmd *redis.Cmd) []appended {
	defer func() {
		for _, r := range c.expects {
			l.expect(r, -1) // by now the head is known
		}
	}()
	results := make([]appended, len(c.records))
	reply, err := cmd.Result()
	replies, ok := reply.([]any)
	if err == nil && (!ok || len(replies) != len(c.groups)) {
		err = fmt.Errorf("unexpected reply %T to append", reply)
	}
	if err != nil {
		failed := appended{err: l.unavailable(err), sure: neverRan(err) || neverSent(err), whole: true}
		for i := range results {
			results[i] = failed
		}
		return results
	}
	for n, g := range c.groups {
		parseGroup(replies[n], g, c.records, results)
		for _, i := range slices.Backward(g.records) {
			if results[i].done() && !results[i].again {
				l.saw(c.records[i].name, results[i].pos, c.heads[g.log])
				break // what is before it is older
			}
		}
	}
	return results
}

// parseGroup enters the results of a group's records.
func parseGroup(reply any, g group, records []*record, results []appended) {
	if list, ok := reply.([]any); ok && len(list) == len(g.records) {
		for n, i := range g.records {
			results[i] = parseAppended(list[n], records[i])
		}
		return
	}
	first := parseAppended(reply, records[g.records[0]])
	for n, i := range g.records {
		results[i] = first
		if !first.pos.IsZero() {
			results[i].pos.seq += int64(n)
			results[i].pos.mark = fingerprint(records[i].id)
		}
	}
}

func parseAppended(reply any, r *record) appended {
	s, _ := reply.(string)
	switch {
	case s == "-" && r.only:
		return appended{}
	case s == "" || !strings.Contains("!~+=", s[:1]):
		return appended{err: fmt.Errorf("unexpected reply %T to append", reply)}
	case s[0] == '!':
		return appended{err: replyError(s[1:]), sure: true}
	}
	at, rest, _ := strings.Cut(s[1:], " ")
	a := appended{again: s[0] == '='}
	if a.pos, a.err = ParsePosition(at); a.err == nil {
		a.pos.mark = fingerprint(r.id)
	}
	if s[0] == '~' {
		a.err = fmt.Errorf("the event is in the log, but then: %w", replyError(rest))
	} else {
		a.also = rest
	}
	return a
}

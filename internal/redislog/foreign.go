package redislog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/syndarix/eventbus/internal/position"
	"github.com/syndarix/eventbus/internal/wire"
)

// A Foreign is an event of a foreign publisher on its way into the log of a channel.
type Foreign struct {
	Channel string
	// Event is the event as it was heard. Where its Also is known, the entry gets it; where it is
	// Final, the log ends with it. Once the event is in the log, its Position, Also, Final and Prev
	// are those of the entry.
	Event wire.Event
	JSON  []byte // the event without position
	// Differs says that the entry has another text, or is gone. Then only Position is of use.
	Differs bool
	Err     error // why the last attempt has failed
}

// MarkerID is the id of an event as it is in the name of a marker. The case of a UUID does not
// matter.
func MarkerID(id string) string {
	if _, err := wire.ParseUUID(id); err != nil {
		return id
	}
	return strings.ToLower(id)
}

// AppendForeign makes one attempt to bring events into their logs, in one round trip. A repeated
// attempt changes nothing: the log has each event once. In a cluster no two events of a call may be
// the same one on different channels.
func (l *Log) AppendForeign(ctx context.Context, events []*Foreign) {
	var order []string
	parts := make(map[string][]*Foreign)
	for _, e := range events {
		if parts[e.Channel] == nil {
			order = append(order, e.Channel)
		}
		parts[e.Channel] = append(parts[e.Channel], e)
	}
	calls := make([]scriptCall, len(order))
	for i, channel := range order {
		calls[i] = l.foreignCall(channel, parts[channel])
	}
	for i, cmd := range foreignScript.runOnce(ctx, l.client, calls) {
		l.settleForeign(order[i], parts[order[i]], cmd)
	}
}

// foreignCall makes the call for the events of one channel.
func (l *Log) foreignCall(channel string, events []*Foreign) scriptCall {
	name := l.Name(channel)
	keep := l.retention(kind(channel))
	if keep.Events == 0 {
		keep.Events = position.MaxSeq
	}
	c := scriptCall{
		keys: []string{logKey(name), producersKey(name)},
		args: []any{name, keep.Events, keep.Bytes, keep.Age.Milliseconds(), l.least(channel), markerTTL.Milliseconds()},
	}
	for _, e := range events {
		id := MarkerID(e.Event.ID)
		own := markerKey(name, id)
		shared := own
		if !l.PerChannel {
			shared = markerKey(l.Name("project:"+e.Event.ProjectID.String()), id)
		}
		ends := ""
		if e.Event.Final {
			ends = "1"
		}
		c.keys = append(c.keys, own, shared)
		c.args = append(c.args, e.JSON, ends, e.Event.Also)
	}
	return c
}

// settleForeign enters what Redis answered to the call for a channel.
func (l *Log) settleForeign(channel string, events []*Foreign, cmd *redis.Cmd) {
	reply, err := cmd.Result()
	items, ok := reply.([]any)
	if err == nil && (!ok || len(items) != len(events)) {
		err = fmt.Errorf("unexpected reply %T to foreign", reply)
	}
	err = l.unavailable(err)
	for i, e := range events {
		if e.Err = err; err == nil {
			e.settle(items[i])
			l.saw(channel, e.Event.Position)
		}
	}
}

// settle enters the answer for an event.
func (e *Foreign) settle(item any) {
	if text, ok := item.(string); ok {
		e.Err = replyError(text)
		return
	}
	var parts [4]string
	list, _ := item.([]any)
	for i := range min(len(list), len(parts)) {
		parts[i], _ = list[i].(string)
	}
	pos, err := position.Parse(parts[0])
	if err != nil {
		e.Err = errors.New("unexpected reply to foreign")
		return
	}
	ev := &e.Event
	ev.Position, ev.Also, ev.Final, ev.Prev = pos, parts[1], parts[2] == "1", parts[3]
	e.Differs = len(list) == 1
}

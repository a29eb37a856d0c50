package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/syndarix/eventbus"
)

// A view is the state that the events of some channels lead to, and the cursor right behind the last
// of these events. Both change together, so a stream that begins with the state and goes on from the
// cursor shows each event once.
type view struct {
	bus      *eventbus.Bus
	channels []eventbus.Channel

	mu    sync.Mutex // guards following
	state state
	after eventbus.Cursor // zero: no event yet
}

// snapshot brings the view up to date, and gives it: this is what eventbus.Subscription.Snapshot
// wants. The first call reads the logs from their oldest events on, later calls what is new.
func (v *view) snapshot(ctx context.Context) (any, eventbus.Cursor, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	sub := eventbus.Subscription{Channels: v.channels, NoFollow: true, After: v.after, Oldest: v.after.IsZero()}
	for ev, err := range v.bus.SubscribeWith(ctx, sub) {
		if gap, ok := errors.AsType[*eventbus.GapError](err); ok {
			v.after = gap.Cursor // What is lost is lost for the state, too. Yours is in a database, which knows.
			continue
		}
		if err != nil {
			return nil, eventbus.Cursor{}, err
		}
		v.state.add(ev)
		v.after = ev.Cursor
	}
	shown, err := json.Marshal(v.state.shown(time.Now())) // now: the next call changes the state
	return json.RawMessage(shown), v.after, err
}

// Views has a view for each set of channels that somebody shows.
type views struct {
	bus *eventbus.Bus

	mu   sync.Mutex
	sets map[string]*view
}

const maxViews = 100 // then it begins anew: a view only saves reading the logs again

func newViews(bus *eventbus.Bus) *views { return &views{bus: bus, sets: make(map[string]*view)} }

// of gives the Snapshot of a subscription to these channels.
func (vs *views) of(channels []eventbus.Channel) func(context.Context) (any, eventbus.Cursor, error) {
	return func(ctx context.Context) (any, eventbus.Cursor, error) {
		var names []string
		for _, c := range channels {
			names = append(names, c.String())
		}
		slices.Sort(names)
		key := strings.Join(names, " ")
		vs.mu.Lock()
		v := vs.sets[key]
		if v == nil {
			if len(vs.sets) >= maxViews {
				clear(vs.sets)
			}
			v = &view{bus: vs.bus, channels: channels, state: state{Agents: []*presence{}, Runs: []*runState{}}}
			vs.sets[key] = v
		}
		vs.mu.Unlock()
		return v.snapshot(ctx)
	}
}

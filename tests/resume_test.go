package tests

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/syndarix/eventbus"
)

// A modelLog is what a test knows of one channel's log.
type modelLog struct {
	ids     []string // of the events, in order
	trimmed int      // how many of them are gone
	places  map[eventbus.Position]int
}

// A modelReader is a subscription that a test drops and resumes, and what it saw.
type modelReader struct {
	channels []eventbus.Channel
	begin    map[eventbus.Channel]int // events of the channel from before the subscription
	cursor   eventbus.Cursor
	seen     map[string]int
	order    map[eventbus.Channel][]string
	gaps     map[eventbus.Channel][][2]int // indexes of the events that were announced as lost

	next func() (eventbus.Event, error, bool)
	stop func()
}

// TestResumeIsExact drives publishes, drops, resumes and trims at random, through
// two buses on one Redis, and compares with a model: nothing is lost without a
// gap in its place, nothing comes twice, all is in the order of its log.
func TestResumeIsExact(t *testing.T) {
	t.Parallel()
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		buses := []*eventbus.Bus{newBus(t, rdb), newBus(t, rdb)}
		rapid.Check(t, func(t *rapid.T) { resumeIsExact(t, rdb, buses) })
	})
}

func resumeIsExact(t *rapid.T, rdb redis.UniversalClient, buses []*eventbus.Bus) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	projects := []uuid.UUID{uuid.New(), uuid.New()}
	channels := []eventbus.Channel{
		eventbus.ProjectChannel(projects[0]), eventbus.ProjectChannel(projects[1]),
		eventbus.AgentChannel(uuid.New()), eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New()),
	}
	logs := map[eventbus.Channel]*modelLog{}
	for _, c := range channels {
		logs[c] = &modelLog{places: map[eventbus.Position]int{}}
	}
	key := func(c eventbus.Channel) string { return "eventbus:log:{" + c.String() + "}" }
	aBus := func() *eventbus.Bus { return buses[rapid.IntRange(0, len(buses)-1).Draw(t, "bus")] }
	var readers []*modelReader
	defer func() {
		for _, r := range readers {
			r.drop()
		}
	}()

	t.Repeat(map[string]func(*rapid.T){
		"publish": func(t *rapid.T) {
			p := rapid.IntRange(0, 1).Draw(t, "project")
			extra := slices.DeleteFunc(slices.Clone(channels[2:]), func(eventbus.Channel) bool { return rapid.Bool().Draw(t, "without") })
			for range rapid.IntRange(1, 4).Draw(t, "events") {
				ev, err := eventbus.NewEvent(projects[p], eventbus.System(), eventbus.ProjectUpdatedPayload{})
				require.NoError(t, err)
				require.NoError(t, aBus().Publish(ctx, ev, extra...))
				for _, c := range append([]eventbus.Channel{channels[p]}, extra...) {
					last, err := rdb.XRevRangeN(ctx, key(c), "+", "-", 1).Result()
					require.NoError(t, err)
					pos, err := eventbus.ParsePosition(last[0].ID)
					require.NoError(t, err)
					logs[c].places[pos] = len(logs[c].ids)
					logs[c].ids = append(logs[c].ids, ev.ID)
				}
			}
		},
		"subscribe": func(t *rapid.T) {
			if len(readers) == 4 {
				return
			}
			r := &modelReader{begin: map[eventbus.Channel]int{}, seen: map[string]int{},
				order: map[eventbus.Channel][]string{}, gaps: map[eventbus.Channel][][2]int{}}
			for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(channels)-1), 1, len(channels), rapid.ID[int]).Draw(t, "channels") {
				r.channels = append(r.channels, channels[i])
			}
			var err error
			r.cursor, err = aBus().Cursor(ctx, r.channels...)
			require.NoError(t, err)
			for _, c := range r.channels {
				r.begin[c] = len(logs[c].ids)
			}
			readers = append(readers, r)
		},
		"read": func(t *rapid.T) {
			if len(readers) == 0 {
				return
			}
			r := readers[rapid.IntRange(0, len(readers)-1).Draw(t, "reader")]
			for range rapid.IntRange(1, 5).Draw(t, "events") {
				if !r.pending(logs) {
					return
				}
				r.read(t, ctx, aBus, logs)
			}
		},
		"drop": func(t *rapid.T) {
			if len(readers) > 0 {
				readers[rapid.IntRange(0, len(readers)-1).Draw(t, "reader")].drop()
			}
		},
		"trim": func(t *rapid.T) {
			c := channels[rapid.IntRange(0, len(channels)-1).Draw(t, "channel")]
			l := logs[c]
			keep := rapid.IntRange(1, 6).Draw(t, "keep")
			if len(l.ids)-l.trimmed > keep {
				require.NoError(t, rdb.XTrimMaxLen(ctx, key(c), int64(keep)).Err())
				l.trimmed = len(l.ids) - keep
			}
		},
		"": func(t *rapid.T) {},
	})
	for _, r := range readers {
		for r.pending(logs) {
			r.read(t, ctx, aBus, logs)
		}
		r.check(t, logs)
	}
}

func (r *modelReader) drop() {
	if r.stop != nil {
		r.stop()
	}
	r.next, r.stop = nil, nil
}

// announced tells whether the i-th event of a channel was announced as lost.
func (r *modelReader) announced(c eventbus.Channel, i int) bool {
	return slices.ContainsFunc(r.gaps[c], func(g [2]int) bool { return i >= g[0] && i < g[1] })
}

// pending tells whether the reader has yet to be given, or told, something.
func (r *modelReader) pending(logs map[eventbus.Channel]*modelLog) bool {
	for _, c := range r.channels {
		for i := r.begin[c]; i < len(logs[c].ids); i++ {
			if r.seen[logs[c].ids[i]] == 0 && !r.announced(c, i) {
				return true
			}
		}
	}
	return false
}

// read takes one pair.
func (r *modelReader) read(t *rapid.T, ctx context.Context, aBus func() *eventbus.Bus, logs map[eventbus.Channel]*modelLog) {
	if r.next == nil {
		r.next, r.stop = iter.Pull2(aBus().SubscribeWith(ctx, eventbus.Subscription{Channels: r.channels, After: r.cursor}))
	}
	ev, err, ok := r.next()
	require.True(t, ok)
	var gap *eventbus.GapError
	if errors.As(err, &gap) {
		require.Equal(t, eventbus.GapTrimmed, gap.Reason)
		l := logs[gap.Channel]
		from := 0
		if i, ok := l.places[gap.From]; ok {
			from = i + 1
		}
		// What is still there, or was seen in this channel, is not lost.
		require.Less(t, from, l.trimmed, "gap without a lost event: %v", gap)
		r.gaps[gap.Channel] = append(r.gaps[gap.Channel], [2]int{from, l.trimmed})
		r.cursor = gap.Cursor
		return
	}
	require.NoError(t, err)
	r.seen[ev.ID]++
	// Where two gaps meet in a channel while another is behind, what is between them can.
	met := slices.ContainsFunc(r.channels, func(c eventbus.Channel) bool {
		return len(r.gaps[c]) > 1 && slices.Contains(logs[c].ids, ev.ID)
	})
	require.True(t, r.seen[ev.ID] == 1 || met && r.seen[ev.ID] == 2, "event came %d times", r.seen[ev.ID])
	r.order[ev.Channel] = append(r.order[ev.Channel], ev.ID)
	r.cursor = ev.Cursor
}

// check compares all that the reader saw with the model.
func (r *modelReader) check(t *rapid.T, logs map[eventbus.Channel]*modelLog) {
	expected := map[string]bool{}
	for _, c := range r.channels {
		at := map[string]int{}
		for i, id := range logs[c].ids {
			at[id] = i
			if i >= r.begin[c] {
				expected[id] = true
			}
		}
		last := -1
		for _, id := range r.order[c] {
			require.Greater(t, at[id], last, "out of order")
			last = at[id]
		}
	}
	for id := range r.seen {
		require.True(t, expected[id], "event from before the subscription")
	}
}

// TestConcurrentPublishersAndResumingReaders lets publishers on two buses run at
// full speed against readers that drop and resume all the time, on either bus.
func TestConcurrentPublishersAndResumingReaders(t *testing.T) {
	t.Parallel()
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		ctx := deadline(t)
		buses := []*eventbus.Bus{newBus(t, rdb), newBus(t, rdb)}
		project := uuid.New()
		channels := []eventbus.Channel{
			eventbus.ProjectChannel(project), eventbus.AgentChannel(uuid.New()), eventbus.UserChannel(uuid.New()),
		}
		start, err := buses[0].Cursor(ctx, channels...)
		require.NoError(t, err)

		const publishers, each = 4, 250
		var published sync.WaitGroup
		for n := range publishers {
			published.Go(func() {
				for i := range each {
					ev := message(t, project, fmt.Sprintf("%d %d", n, i))
					if i%5 == 0 {
						ev.ProjectID = uuid.New() // seen by those of the agent and the user only
					}
					if err := buses[n%2].Publish(ctx, ev, channels[1+i%2:]...); err != nil {
						t.Error(err)
					}
				}
			})
		}

		// The last event is published when all others have been, so that every
		// reader has one coming when it can be known what there is to see.
		done, last := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(last)
			published.Wait()
			close(done)
			if err := buses[0].Publish(ctx, message(t, project, "last"), channels[1:]...); err != nil {
				t.Error(err)
			}
		}()
		logOf := func(c eventbus.Channel) (ids []string) {
			entries, err := rdb.XRange(ctx, "eventbus:log:{"+c.String()+"}", "-", "+").Result()
			if err != nil {
				t.Error(err)
			}
			for _, e := range entries {
				ids = append(ids, eventOf(t, e).ID)
			}
			return ids
		}

		sets := [][]eventbus.Channel{channels, channels[:1], channels[1:], {channels[0], channels[2]}}
		results := make([]map[string]eventbus.Channel, len(sets))
		orders := make([]map[eventbus.Channel][]string, len(sets))
		var readers sync.WaitGroup
		for n, set := range sets {
			results[n], orders[n] = map[string]eventbus.Channel{}, map[eventbus.Channel][]string{}
			take := func(ev eventbus.Event) (complete bool) {
				if c, ok := results[n][ev.ID]; ok {
					t.Errorf("set %d: event came twice, by %s and %s", n, c, ev.Channel)
				}
				results[n][ev.ID] = ev.Channel
				orders[n][ev.Channel] = append(orders[n][ev.Channel], ev.ID)
				select {
				case <-done:
					<-last
				default:
					return false
				}
				want := map[string]bool{}
				for _, c := range set {
					for _, id := range logOf(c) {
						want[id] = true
					}
				}
				return len(results[n]) >= len(want)
			}
			readers.Go(func() {
				cursor := start
				for complete := false; !complete; {
					k := 1 + rand.IntN(200)
					for ev, err := range buses[rand.IntN(2)].SubscribeWith(ctx, eventbus.Subscription{Channels: set, After: cursor}) {
						if err != nil {
							t.Error(err)
							return
						}
						cursor = ev.Cursor
						if complete = take(ev); complete || k == 0 {
							break
						}
						k--
					}
				}
			})
		}
		readers.Wait()
		for n, set := range sets {
			for _, c := range set {
				var order []string
				for _, id := range logOf(c) {
					if results[n][id] == c {
						order = append(order, id)
					}
				}
				require.Equal(t, order, orders[n][c], "set %d, %s", n, c)
			}
		}
	})
}

// eventOf reads an entry of a log.
func eventOf(t testing.TB, entry redis.XMessage) eventbus.Event {
	var ev eventbus.Event
	if err := ev.UnmarshalJSON([]byte(entry.Values["event"].(string))); err != nil {
		t.Error(err)
	}
	return ev
}

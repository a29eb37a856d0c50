package tests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
	"github.com/syndarix/eventbus/embedded"
	"github.com/syndarix/eventbus/internal/testing/sseclient"
)

// quiet is for tests that provoke warnings.
func quiet() eventbus.Option { return eventbus.WithLogger(slog.New(slog.DiscardHandler)) }

// publish says texts in a project, and in the channels.
func publish(t testing.TB, bus *eventbus.Bus, project uuid.UUID, channels []eventbus.Channel, texts ...string) {
	t.Helper()
	for _, text := range texts {
		require.NoError(t, bus.Publish(deadline(t), message(t, project, text), channels...))
	}
}

// projectOf is the project of a channel.
func projectOf(c eventbus.Channel) uuid.UUID {
	id, _ := c.UUID()
	return id
}

func logOf(c eventbus.Channel) string { return "eventbus:log:{" + c.String() + "}" }

func TestEventFrameIsTheContract(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus := newBus(t, rdb)
		project := uuid.New()
		channel := eventbus.ProjectChannel(project)
		s := connect(t, streams(t, bus, channel))

		first := s.block()
		require.Len(t, first.Lines, 2)
		require.True(t, strings.HasPrefix(first.Lines[0], "retry: "), first.Lines[0])
		require.True(t, strings.HasPrefix(first.Lines[1], "id: "), first.Lines[1])
		require.GreaterOrEqual(t, s.Retry, 250) // WithRetry's default, up to twice that
		require.Less(t, s.Retry, 502)
		require.Nil(t, first.Event)
		requireCursor(t, s.LastEventID)

		publish(t, bus, project, nil, "hello", "again")
		for range 2 {
			b := s.until(func(b sseBlock) bool { return b.Event != nil })
			require.Len(t, b.Lines, 3)
			require.Equal(t, "id: "+b.Event.LastEventID, b.Lines[0])
			require.Equal(t, "event: agent.message", b.Lines[1])
			require.Equal(t, "data: "+b.Event.Data, b.Lines[2])
			requireCursor(t, b.Event.LastEventID)

			names, values := sseclient.Members(t, b.Event.Data)
			require.Equal(t, []string{"id", "type", "timestamp", "project_id", "actor_id", "actor_type", "payload", "position", "channel"}, names)
			var position string
			require.NoError(t, json.Unmarshal(values["position"], &position))
			logged, err := rdb.XRange(t.Context(), logOf(channel), position, position).Result()
			require.NoError(t, err)
			require.Len(t, logged, 1, "the position in the data is the ID of the log's entry")
			want := strings.TrimSuffix(logged[0].Values["event"].(string), "}") + `,"position":"` + position + `","channel":"` + channel.String() + `"}`
			require.Equal(t, want, b.Event.Data)
			if text(t, decode(t, *b.Event)) == "again" {
				newest, err := rdb.XRevRangeN(t.Context(), logOf(channel), "+", "-", 1).Result()
				require.NoError(t, err)
				require.Equal(t, newest[0].ID, position)
			}
		}
	})
}

// requireCursor wants what an id field may hold.
func requireCursor(t testing.TB, id string) {
	t.Helper()
	require.Regexp(t, `^[A-Za-z0-9_-]{1,128}$`, id)
}

func TestCursorOfSixChannelsFitsIntoAHeader(t *testing.T) {
	rdb, err := embedded.New()
	require.NoError(t, err)
	defer rdb.Close()
	bus := newBus(t, rdb)
	project := uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(project)}
	for range 5 {
		channels = append(channels, eventbus.AgentChannel(uuid.New()))
	}
	s := joined(t, streams(t, bus, channels...))
	requireCursor(t, s.LastEventID)
	publish(t, bus, project, channels[1:], "a", "b")
	requireCursor(t, s.expect("a", "b").LastEventID)
}

// The example that the schema of the Python services gives.
const foreignExample = `{"id": "550e8400-e29b-41d4-a716-446655440000", "type": "agent.message", "timestamp": "2024-01-15T10:30:00Z", ` +
	`"project_id": "550e8400-e29b-41d4-a716-446655440001", "actor_id": "550e8400-e29b-41d4-a716-446655440002", "actor_type": "agent", ` +
	`"payload": {"message": "Processing task...", "progress": 50}}`

// publishForeign does as the Python services do, once somebody listens.
func publishForeign(t testing.TB, rdb redis.UniversalClient, channel eventbus.Channel, data string) {
	t.Helper()
	ctx := deadline(t)
	for {
		heard, err := rdb.Publish(ctx, channel.String(), data).Result()
		require.NoError(t, err)
		if heard > 0 {
			return
		}
	}
}

func TestForeignEventHasNoIDAndKeepsTheLastOne(t *testing.T) {
	project := uuid.MustParse("550e8400-e29b-41d4-a716-446655440001")
	channel := eventbus.ProjectChannel(project)
	for name, channels := range map[string][]eventbus.Channel{
		"one channel":  {channel},
		"two channels": {eventbus.UserChannel(uuid.New()), channel},
	} {
		t.Run(name, func(t *testing.T) {
			eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
				bus := newBus(t, rdb)
				server := streams(t, bus, channels...)
				s := joined(t, server)
				publish(t, bus, project, nil, "before")
				before := s.expect("before").LastEventID

				publishForeign(t, rdb, channel, foreignExample)
				b := s.until(func(b sseBlock) bool { return b.Event != nil })
				require.False(t, b.Has("id"), "%q", b.Lines)
				require.Equal(t, before, s.LastEventID)
				require.Equal(t, "agent.message", b.Event.Type)
				names, values := sseclient.Members(t, b.Event.Data)
				require.Equal(t, []string{"id", "type", "timestamp", "project_id", "actor_id", "actor_type", "payload", "channel"}, names)
				require.JSONEq(t, `{"message": "Processing task...", "progress": 50}`, string(values["payload"]))

				publish(t, bus, project, nil, "after")
				require.NotEqual(t, before, s.expect("after").LastEventID)

				// Never replayed: whoever comes back does not get it again.
				again := joined(t, server, lastEventID(before)).event()
				require.NotEqual(t, b.Event.Data, again.Data)
				require.Equal(t, "after", textOf(t, again))
			})
		})
	}
}

func TestSubscribeSSEGivesWholeBlocks(t *testing.T) {
	eachRedis(t, func(t *testing.T, rdb redis.UniversalClient) {
		bus := newBus(t, rdb, eventbus.WithKeepalive(20*time.Millisecond))
		project := uuid.New()
		ctx := deadline(t)
		p := sseclient.New("")
		var got []string
		frames, comments := 0, 0
		for frame, err := range framesOf(ctx, bus, eventbus.Subscription{Channels: []eventbus.Channel{eventbus.ProjectChannel(project)}}) {
			require.NoError(t, err)
			require.True(t, bytes.HasSuffix(frame, []byte("\n\n")), "%q", frame)
			for _, b := range p.Parse(frame) {
				switch {
				case b.Event != nil && b.Event.Type == "stream.live":
				case b.Event != nil:
					got = append(got, textOf(t, *b.Event))
				case b.Comment():
					comments++
				}
			}
			require.Empty(t, p.Unfinished())
			if frames++; frames == 1 {
				require.NotEmpty(t, p.LastEventID)
				require.GreaterOrEqual(t, p.Retry, 250)
				publish(t, bus, project, nil, "a", "b", "c")
			}
			if len(got) == 3 && comments > 0 {
				break
			}
		}
		require.Equal(t, []string{"a", "b", "c"}, got)
		require.Zero(t, bus.Stats().Active)
	})
}

func TestSubscribeSSESaysWhyItEnded(t *testing.T) {
	rdb, err := embedded.New()
	require.NoError(t, err)
	defer rdb.Close()
	channels := []eventbus.Channel{eventbus.ProjectChannel(uuid.New())}

	t.Run("invalid subscription", func(t *testing.T) {
		bus := newBus(t, rdb)
		pairs := 0
		for frame, err := range framesOf(deadline(t), bus, eventbus.Subscription{Types: []string{"["}}) {
			pairs++
			require.Empty(t, frame)
			var bad *eventbus.ValidationError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, "channels", bad.Fields[0].Field)
			require.Equal(t, "types[0]", bad.Fields[1].Field)
		}
		require.Equal(t, 1, pairs)
	})
	t.Run("context", func(t *testing.T) {
		bus := newBus(t, rdb)
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(deadline(t))
		defer cancel(nil)
		var last error
		for frame, err := range framesOf(ctx, bus, eventbus.Subscription{Channels: channels}) {
			require.NoError(t, last, "the error is the last")
			if last = err; err != nil {
				require.Empty(t, frame)
			}
			cancel(gone)
		}
		require.Equal(t, gone, last)
		require.Zero(t, bus.Stats().Active)
	})
	t.Run("closed before", func(t *testing.T) {
		bus := newBus(t, rdb)
		require.NoError(t, bus.Close())
		pairs := 0
		for frame, err := range framesOf(deadline(t), bus, eventbus.Subscription{Channels: channels}) {
			pairs++
			require.Empty(t, frame)
			require.Equal(t, eventbus.ErrClosed, err)
		}
		require.Equal(t, 1, pairs)
	})
	t.Run("shutdown", func(t *testing.T) {
		bus := newBus(t, rdb, eventbus.WithRetry(100*time.Millisecond))
		shut := make(chan error, 1)
		p := sseclient.New("")
		var last error
		var final sseBlock
		frames := 0
		for frame, err := range framesOf(deadline(t), bus, eventbus.Subscription{Channels: channels}) {
			require.NoError(t, last, "the error is the last")
			if last = err; err != nil {
				require.Empty(t, frame)
				continue
			}
			p.Retry = -1
			blocks := p.Parse(frame)
			final = blocks[len(blocks)-1]
			if frames++; frames == 1 {
				go func() { shut <- bus.Shutdown(context.Background()) }()
			}
		}
		require.Equal(t, eventbus.ErrClosed, last)
		require.NoError(t, <-shut)
		require.GreaterOrEqual(t, frames, 2) // there may be a stream.live between them
		require.Len(t, final.Lines, 1)
		require.GreaterOrEqual(t, p.Retry, 0)
		require.Less(t, p.Retry, 400)
	})
}

// No step of coming back may forget what the client does not know yet: one that is
// cut off after any frame, and comes back with the id it then has, is told of the
// same gaps and events as one that was not.
func TestCutAfterAnyFrameLosesNothing(t *testing.T) {
	rdb, err := embedded.New()
	require.NoError(t, err)
	defer rdb.Close()
	bus := newBus(t, rdb)
	project, agent := uuid.New(), uuid.New()
	channels := []eventbus.Channel{eventbus.ProjectChannel(project), eventbus.AgentChannel(agent)}
	publish(t, bus, project, nil, "a", "b")
	require.NoError(t, bus.Publish(deadline(t), message(t, uuid.New(), "c"), channels[1]))

	// walk leaves after each of the first frames, as often as cuts says, and reads
	// up to the last event then.
	walk := func(t *testing.T, cuts int) (gaps, texts []string) {
		id := "who knows"
		for {
			for frame, err := range framesOf(deadline(t), bus, eventbus.Subscription{Channels: channels, LastEventID: id}) {
				require.NoError(t, err)
				p := sseclient.New(id)
				for _, b := range p.Parse(frame) {
					switch {
					case b.Event == nil:
					case b.Event.Type == "stream.gap":
						var g gapData
						require.NoError(t, json.Unmarshal([]byte(b.Event.Data), &g))
						gaps = append(gaps, g.Channel+" "+g.Reason)
					default:
						texts = append(texts, textOf(t, *b.Event))
					}
				}
				id = p.LastEventID
				if len(texts) == 3 {
					return gaps, texts
				}
				if cuts--; cuts >= 0 {
					break
				}
			}
		}
	}
	wantGaps, wantTexts := walk(t, 0)
	require.ElementsMatch(t, []string{channels[0].String() + " unknown", channels[1].String() + " unknown"}, wantGaps)
	require.ElementsMatch(t, []string{"a", "b", "c"}, wantTexts)
	for cuts := 1; cuts < 4; cuts++ {
		t.Run(fmt.Sprint(cuts, " cuts"), func(t *testing.T) {
			gaps, texts := walk(t, cuts)
			require.ElementsMatch(t, wantTexts, texts)
			for _, gap := range wantGaps {
				require.Contains(t, gaps, gap)
			}
		})
	}
}

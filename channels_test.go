package eventbus_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/syndarix/eventbus"
)

func TestChannelsAreNamedByKindAndLowerCaseUUID(t *testing.T) {
	id := uuid.MustParse("550E8400-E29B-41D4-A716-446655440001")
	for _, tc := range []struct {
		channel eventbus.Channel
		kind    eventbus.ChannelKind
		text    string
	}{
		{eventbus.ProjectChannel(id), eventbus.ProjectKind, "project:550e8400-e29b-41d4-a716-446655440001"},
		{eventbus.AgentChannel(id), eventbus.AgentKind, "agent:550e8400-e29b-41d4-a716-446655440001"},
		{eventbus.UserChannel(id), eventbus.UserKind, "user:550e8400-e29b-41d4-a716-446655440001"},
	} {
		t.Run(tc.text, func(t *testing.T) {
			require.Equal(t, tc.text, tc.channel.String())
			require.Equal(t, tc.kind, tc.channel.Kind())
			require.Equal(t, id.String(), tc.channel.ID())
			u, ok := tc.channel.UUID()
			require.True(t, ok)
			require.Equal(t, id, u)
			made, err := eventbus.NewChannel(tc.kind, strings.ToUpper(id.String()))
			require.NoError(t, err)
			require.Equal(t, tc.channel, made)
			parsed, err := eventbus.ParseChannel(tc.text)
			require.NoError(t, err)
			require.Equal(t, tc.channel, parsed)

			data, err := json.Marshal(map[eventbus.Channel]eventbus.Channel{tc.channel: tc.channel})
			require.NoError(t, err)
			require.Equal(t, `{"`+tc.text+`":"`+tc.text+`"}`, string(data))
			var back map[eventbus.Channel]eventbus.Channel
			require.NoError(t, json.Unmarshal(data, &back))
			require.Equal(t, tc.channel, back[tc.channel])
		})
	}
}

func TestChannelUUIDMayBeInUpperCase(t *testing.T) {
	c, err := eventbus.ParseChannel("agent:550E8400-E29B-41D4-A716-44665544ABCD")
	require.NoError(t, err)
	require.Equal(t, "agent:550e8400-e29b-41d4-a716-44665544abcd", c.String())
}

// One channel must have one name: what else uuid.Parse takes is refused.
func TestParseChannelRefuses(t *testing.T) {
	const id = "550e8400-e29b-41d4-a716-446655440001"
	for _, text := range []string{
		"", ":", "project", "project:", id, ":" + id,
		"PROJECT:" + id, "Project:" + id, " project:" + id, "eventbus:" + id, "stream:" + id, "1run:x", "-run:x", "rün:x", "a" + strings.Repeat("b", 32) + ":x",
		"run:", "run:.", "run:..", "run:a b", "run:a/b", "run:a:b", "run:a@b", "run:a|b", "run:{a}", "run:ä", "run:a\n", "run:%41", "run:" + strings.Repeat("a", 129),
		"project: " + id, "project:" + id + " ", "project:" + id + "\n", "project::" + id, "project:" + id + ":",
		"project:{" + id + "}", "project:urn:uuid:" + id, "project:" + strings.ReplaceAll(id, "-", ""),
		"project:" + id[:35], "project:" + id + "0", "project:" + strings.Replace(id, "5", "g", 1),
		"project:" + strings.ReplaceAll(id, "-", "_"), "project:*",
		"project:00000000-0000-0000-0000-000000000000", "project:\xff", strings.Repeat("project:", 100_000),
	} {
		c, err := eventbus.ParseChannel(text)
		require.Equal(t, []string{"channel"}, badFields(t, err), "%q", text)
		require.Less(t, len(err.Error()), 400)
		require.Zero(t, c, "%q", text)
		var into eventbus.Channel
		require.Error(t, into.UnmarshalText([]byte(text)), "%q", text)
		require.Zero(t, into, "%q", text)
	}
}

func TestZeroChannelIsNoChannel(t *testing.T) {
	var c eventbus.Channel
	require.Equal(t, "", c.String())
	require.Equal(t, eventbus.ChannelKind(""), c.Kind())
	require.Empty(t, c.ID())
	_, ok := c.UUID()
	require.False(t, ok)
	text, err := c.MarshalText()
	require.NoError(t, err)
	require.Empty(t, text)
	_, err = eventbus.ParseChannel(c.String())
	require.Error(t, err)
}

func TestChannelsOfAnyKind(t *testing.T) {
	for _, text := range []string{"run:run_01J9ZQ4T", "team:x", "a:...", "a_b-9:A~z.0", "projects:1", strings.Repeat("k", 32) + ":" + strings.Repeat("i", 128)} {
		kind, id, _ := strings.Cut(text, ":")
		c, err := eventbus.NewChannel(eventbus.ChannelKind(kind), id)
		require.NoError(t, err)
		require.Equal(t, text, c.String())
		require.Equal(t, id, c.ID())
		_, ok := c.UUID()
		require.False(t, ok, "only project, agent and user have UUIDs")
		parsed, err := eventbus.ParseChannel(text)
		require.NoError(t, err)
		require.Equal(t, c, parsed)
	}
	_, err := eventbus.NewChannel("run", uuid.Nil.String())
	require.NoError(t, err, "a name like any other")
	c, err := eventbus.NewChannel("run", someID)
	require.NoError(t, err)
	_, ok := c.UUID()
	require.False(t, ok)
}

func TestNewChannelNamesWhatIsWrong(t *testing.T) {
	_, err := eventbus.NewChannel("Team", "")
	require.Equal(t, []string{"kind", "id"}, badFields(t, err))
	_, err = eventbus.NewChannel(eventbus.UserKind, uuid.Nil.String())
	require.Equal(t, []string{"id"}, badFields(t, err))
}

// FuzzParseChannel: a channel's name is what was parsed, but for the case of a UUID.
func FuzzParseChannel(f *testing.F) {
	for _, kind := range []string{"project:", "agent:", "user:", "run:", "stream:", ""} {
		for _, id := range []string{someID, strings.ToUpper(someID), "{" + someID + "}", "00000000-0000-0000-0000-000000000000", "x"} {
			f.Add(kind + id)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := eventbus.ParseChannel(text)
		if err != nil {
			require.Equal(t, []string{"channel"}, badFields(t, err))
			return
		}
		kind, id, _ := strings.Cut(text, ":")
		if u, ok := c.UUID(); ok {
			id = strings.ToLower(id)
			require.Equal(t, u.String(), id)
		}
		require.Equal(t, kind+":"+id, c.String())
		require.Equal(t, id, c.ID())
		require.Regexp(t, `^[a-z][a-z0-9_-]{0,31}:[A-Za-z0-9._~-]{1,128}$`, text)
		again, err := eventbus.ParseChannel(c.String())
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}

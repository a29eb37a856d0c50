package chaos

import (
	"fmt"
	"testing"
	"time"
)

// TestCheckerFindsWhatIsWrong: a checker that cannot fail proves nothing.
func TestCheckerFindsWhatIsWrong(t *testing.T) {
	const project, user = "project:1", "user:1"
	ev := func(channel string, seq int) item {
		return item{id: fmt.Sprintf("id%d", seq), channel: channel, position: fmt.Sprintf("5-%d", seq)}
	}
	at := func(it item, channel, position string) item { it.channel, it.position = channel, position; return it }
	gap := func(channel string) item { return item{channel: channel, reason: "rewound"} }
	log := func(numbers ...int) (entries []entry) {
		for i, n := range numbers {
			entries = append(entries, entry{fmt.Sprintf("5-%d", i+1), fmt.Sprintf("id%d", n)})
		}
		return entries
	}
	one := map[string][]entry{project: log(1, 2, 3, 4)}
	rewound := map[string][]entry{project: log(1, 2, 4)} // 3 was there once
	both := map[string][]entry{project: log(1, 2, 3, 4), user: log(2, 3)}
	type want struct{ lost, duplicated, disordered, untold, corners int }
	for _, tc := range []struct {
		name     string
		logs     map[string][]entry
		channels []string
		items    []item
		lossless bool
		sharded  bool
		want     want
	}{
		{name: "everything in order", logs: one, items: []item{ev(project, 1), ev(project, 2), ev(project, 3), ev(project, 4)}, lossless: true},
		{name: "one lost", logs: one, items: []item{ev(project, 1), ev(project, 2), ev(project, 4)}, want: want{lost: 1}},
		{name: "the last ones lost", logs: one, items: []item{ev(project, 1)}, want: want{lost: 3}},
		{name: "nothing given", logs: one, want: want{lost: 4}},
		{name: "one twice", logs: one, items: []item{ev(project, 1), ev(project, 2), ev(project, 3), ev(project, 2), ev(project, 4)},
			want: want{duplicated: 1, disordered: 1}},
		{name: "one twice, a gap between", logs: one, items: []item{ev(project, 1), ev(project, 2), {channel: project, reason: "unlogged", position: "5-2"}, ev(project, 2), ev(project, 3), ev(project, 4)},
			want: want{duplicated: 1}},
		{name: "a log that went back and came back", logs: one, items: []item{ev(project, 1), ev(project, 2), {channel: project, reason: "rewound", position: "5-2"}, ev(project, 2), ev(project, 3), ev(project, 4)}},
		{name: "out of order", logs: one, items: []item{ev(project, 1), ev(project, 3), ev(project, 2), ev(project, 4)}, want: want{disordered: 1}},
		{name: "lost in a gap", logs: one, items: []item{ev(project, 1), gap(project), ev(project, 4)}},
		{name: "lost before a gap", logs: one, items: []item{ev(project, 1), ev(project, 3), gap(project), ev(project, 4)}, want: want{lost: 1}},
		{name: "lost behind a gap", logs: one, items: []item{gap(project), ev(project, 1), ev(project, 4)}, want: want{lost: 2}},
		{name: "the end lost in a gap", logs: one, items: []item{ev(project, 1), gap(project)}},
		{name: "a gap of another channel", logs: both, channels: []string{project, user},
			items: []item{ev(project, 1), gap("user:2"), ev(project, 4)}, want: want{lost: 2}},
		{name: "from the other channel", logs: both, channels: []string{project, user},
			items: []item{ev(project, 1), at(ev(user, 2), user, "5-1"), ev(project, 3), ev(project, 4)}},
		{name: "from both channels", logs: both, channels: []string{project, user},
			items: []item{ev(project, 1), ev(project, 2), at(ev(user, 2), user, "5-1"), ev(project, 3), ev(project, 4)}, want: want{duplicated: 1}},
		{name: "a stream does not tell the channel", logs: both, channels: []string{project, user},
			items: []item{ev("", 1), at(ev("", 3), "", "5-2"), at(ev("", 2), "", "5-1"), ev("", 4)}, want: want{disordered: 1}},
		{name: "rolled back, and told", logs: rewound,
			items: []item{ev(project, 1), ev(project, 2), gap(project), at(ev(project, 4), project, "5-3")}},
		{name: "rolled back, and not told", logs: rewound,
			items: []item{ev(project, 1), ev(project, 2), at(ev(project, 4), project, "5-3")}, want: want{untold: 1}},
		{name: "rolled back after it was given, and told", logs: rewound,
			items: []item{ev(project, 1), ev(project, 2), ev(project, 3), gap(project), at(ev(project, 4), project, "5-3")}},
		{name: "rolled back where nothing may be", logs: rewound, lossless: true,
			items: []item{ev(project, 1), ev(project, 2), ev(project, 3), gap(project), at(ev(project, 4), project, "5-3")}, want: want{lost: 1}},
		{name: "an older log comes back", logs: one, items: []item{ev(project, 1), {channel: project, reason: "lost", position: "5-1"},
			{channel: project, reason: "lost", position: "6-1"}, ev(project, 1), ev(project, 2), ev(project, 3), ev(project, 4)}},
		{name: "the same log comes again", logs: one, items: []item{ev(project, 1), {channel: project, reason: "trimmed", position: "5-1"},
			ev(project, 1), ev(project, 2), ev(project, 3), ev(project, 4)}, want: want{duplicated: 1}},
		{name: "put in again after it was rolled back", logs: map[string][]entry{project: log(1, 2, 4, 3)},
			items: []item{ev(project, 1), ev(project, 2), ev(project, 3), gap(project), at(ev(project, 4), project, "5-3"), at(ev(project, 3), project, "5-4")}},
		{name: "put in again, and not told", logs: map[string][]entry{project: log(1, 2, 4, 3)},
			items: []item{ev(project, 1), ev(project, 2), ev(project, 3), at(ev(project, 4), project, "5-4"), at(ev(project, 3), project, "5-5")}, want: want{duplicated: 1}},
		{name: "twice in the log", logs: map[string][]entry{project: log(1, 2, 3, 4, 2)},
			items: []item{ev(project, 1), ev(project, 2), ev(project, 3), ev(project, 4), at(ev(project, 2), project, "5-5")}, want: want{duplicated: 2}},
		{name: "not given from the second channel, and the first has lost it", logs: map[string][]entry{project: log(1, 4), user: log(2, 3)}, channels: []string{project, user}, sharded: true,
			items: []item{ev(project, 1), at(ev(user, 3), user, "5-2"), at(ev(project, 4), project, "5-2")}, want: want{corners: 1}},
		{name: "not given from the second channel, and the first has it", logs: both, channels: []string{project, user}, sharded: true,
			items: []item{ev(project, 1), ev(project, 3), ev(project, 4)}, want: want{lost: 1}},
		{name: "from both channels, with two gaps in one", logs: both, channels: []string{project, user},
			items: []item{gap(project), gap(project), ev(project, 2), at(ev(user, 2), user, "5-1"), ev(project, 3), ev(project, 4)}, want: want{corners: 1}},
		{name: "another epoch without a gap", logs: one,
			items: []item{ev(project, 1), ev(project, 2), at(ev(project, 3), project, "4-9"), ev(project, 4)}, want: want{disordered: 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLedger()
			if tc.channels == nil {
				tc.channels = []string{project}
			}
			a := l.open("reader", tc.channels)
			for n := 1; n <= 4; n++ {
				id, channels := fmt.Sprintf("id%d", n), []string{project}
				if len(tc.logs) > 1 && (n == 2 || n == 3) {
					channels = append(channels, user)
				}
				l.publish(id, channels)
				l.ack(id)
			}
			for _, it := range tc.items {
				a.add(it)
			}
			b := newChecker(l, tc.logs, tc.sharded).all(l, tc.lossless)
			if got := (want{b.lost, b.duplicated, b.disordered, b.untold, b.corners}); got != tc.want {
				t.Errorf("got %+v, want %+v: %q", got, tc.want, b.notes)
			}
			if b.broken() != (tc.want.lost+tc.want.duplicated+tc.want.disordered > 0) || b.broken() != (len(b.notes) > 0) {
				t.Errorf("broken is %t, with notes %q", b.broken(), b.notes)
			}
		})
	}
}

// TestGapExcusesNothingThatCameLater: an event that was published after the gap was told.
func TestGapExcusesNothingThatCameLater(t *testing.T) {
	l := newLedger()
	a := l.open("reader", []string{"project:1"})
	a.add(item{channel: "project:1", reason: "lost"})
	time.Sleep(time.Millisecond)
	l.publish("id1", []string{"project:1"})
	l.ack("id1")
	c := newChecker(l, map[string][]entry{"project:1": {}}, false)
	if b := c.all(l, false); b.untold != 1 || b.rolledBack != 1 {
		t.Errorf("%d untold, %d rolled back", b.untold, b.rolledBack)
	}
}

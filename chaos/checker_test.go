package chaos

import (
	"fmt"
	"slices"
	"strings"
)

// A checker holds accounts against the logs as they are in the end.
type checker struct {
	events map[string]*event
	logs   map[string][]entry
	index  map[string]map[string]int // of each id in each log
	heard  map[string][]string       // the channels of "<position> <id>"

	sharded bool // each log loses its newest entries by itself
}

func newChecker(l *ledger, logs map[string][]entry, sharded bool) *checker {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &checker{events: make(map[string]*event), logs: logs, index: make(map[string]map[string]int), heard: make(map[string][]string), sharded: sharded}
	for id, ev := range l.events {
		known := *ev
		c.events[id] = &known
	}
	hear := func(channel, position, id string) {
		key := position + " " + id
		if channel != "" && !slices.Contains(c.heard[key], channel) {
			c.heard[key] = append(c.heard[key], channel)
		}
	}
	for channel, entries := range logs {
		c.index[channel] = make(map[string]int, len(entries))
		for i, e := range entries {
			if _, twice := c.index[channel][e.id]; !twice {
				c.index[channel][e.id] = i
			}
			hear(channel, e.position, e.id)
		}
	}
	for _, a := range l.accounts {
		a.mu.Lock()
		for _, it := range a.items {
			hear(it.channel, it.position, it.id)
		}
		a.mu.Unlock()
	}
	return c
}

// all gives the balance of a whole ledger. Where nothing may get lost, every gap is one
// too many and every event must be in its logs.
func (c *checker) all(l *ledger, lossless bool) balance {
	var sum balance
	sum.published, sum.retried = len(c.events), l.retried
	for channel, entries := range c.logs {
		for i, e := range entries {
			if c.index[channel][e.id] != i {
				sum.duplicated++
				sum.note("%s has %s at %s and %s", channel, e.id, entries[c.index[channel][e.id]].position, e.position)
			}
		}
	}
	for id, ev := range c.events {
		for _, channel := range ev.channels {
			if _, ok := c.index[channel][id]; ok || !ev.acked {
				continue
			}
			if sum.rolledBack++; lossless {
				sum.lost++
				sum.note("%s was acknowledged and is not in the log of %s", id, channel)
			}
		}
	}
	for _, ids := range l.written {
		sum.disordered += c.disordered(ids, &sum)
	}
	for _, a := range l.accounts {
		sum.add(c.account(a))
	}
	return sum
}

// disordered counts the events that a log has in another order than their Writer.
func (c *checker) disordered(ids []string, b *balance) (n int) {
	last := make(map[string]int)
	for _, id := range ids {
		for _, channel := range c.events[id].channels {
			i, ok := c.index[channel][id]
			if ok && i < last[channel] {
				n++
				b.note("%s is in the log of %s before what was written earlier", id, channel)
			}
			if ok {
				last[channel] = i
			}
		}
	}
	return n
}

// account gives the balance of one subscriber.
func (c *checker) account(a *account) balance {
	a.mu.Lock()
	items := slices.Clone(a.items)
	a.mu.Unlock()
	var b balance
	given := make(map[string]int, len(items)) // the last item with this id
	last := make(map[string]int)              // the last item from this channel
	gaps := make(map[string][]int)            // the items that are gaps of this channel
	gapBetween := func(channel string, from, to int) bool {
		return slices.ContainsFunc(gaps[channel], func(i int) bool { return from < i && i < to })
	}
	for i := range items {
		it := &items[i]
		if it.id == "" {
			b.gaps++
			gaps[it.channel] = append(gaps[it.channel], i)
			continue
		}
		if b.delivered++; it.replayed {
			b.replayed++
		}
		if it.channel == "" {
			it.channel = c.channelOf(a, it)
		}
		before, twice := given[it.id]
		twice = twice && !c.again(a, items, before, i, gapBetween)
		switch across := twice && items[before].channel != it.channel; {
		case twice && (c.shardLost(a, it.id, "") || across && c.gapsMet(a, it.id, gaps)):
			b.corners++
		case twice:
			b.duplicated++
			told := ""
			for _, g := range items[before:i] {
				if g.id == "" && g.channel == it.channel {
					told += fmt.Sprintf(", gap %s after %s", g.reason, g.position)
				}
			}
			b.note("%s was given %s at %s %s and again at %s %s%s", a.name, it.id,
				items[before].channel, items[before].position, it.channel, it.position, told)
		}
		given[it.id] = i
		if it.channel == "" || it.position == "" {
			continue // of a log that is gone, and nobody else has had it
		}
		if before, ok := last[it.channel]; ok && !gapBetween(it.channel, before, i) && !follows(it.position, items[before].position) {
			b.disordered++
			b.note("%s was given %s %s after %s", a.name, it.channel, it.position, items[before].position)
		}
		last[it.channel] = i
	}
	c.missing(a, items, given, gaps, &b)
	return b
}

// again tells whether an event may be given twice: when its log had lost it in between,
// which a gap says, and the publisher has put it in again, at another place; or when
// another log had taken the place of its log, and was lost in turn (a master that comes
// back empty or old, and then a replica that is not).
func (c *checker) again(a *account, items []item, before, i int, gapBetween func(string, int, int) bool) bool {
	ev := c.events[items[i].id]
	if ev == nil {
		return false
	}
	same := items[before].channel == items[i].channel && items[before].position == items[i].position
	return slices.ContainsFunc(a.channels, func(channel string) bool {
		if !slices.Contains(ev.channels, channel) {
			return false
		}
		if !same {
			return gapBetween(channel, before, i)
		}
		return slices.ContainsFunc(items[before:i], func(it item) bool {
			return it.id == "" && it.channel == channel && (it.reason == "lost" || it.reason == "rewound")
		})
	})
}

// shardLost reports whether a shard has lost an event from one of the subscriber's channels that come
// before this one in its publish; "" is behind all. What is noted of it elsewhere is not true any more.
func (c *checker) shardLost(a *account, id, channel string) bool {
	ev := c.events[id]
	if ev == nil || !c.sharded {
		return false
	}
	for _, earlier := range ev.channels {
		if earlier == channel {
			return false
		}
		if _, has := c.index[earlier][id]; !has && slices.Contains(a.channels, earlier) {
			return true
		}
	}
	return false
}

// gapsMet reports whether there was more than one gap in a channel of an event: what was between them
// can come twice across channels.
func (c *checker) gapsMet(a *account, id string, gaps map[string][]int) bool {
	ev := c.events[id]
	return ev != nil && slices.ContainsFunc(ev.channels, func(channel string) bool { return len(gaps[channel]) > 1 })
}

// channelOf finds the channel of an event that came on a stream, "" where it may be one of
// several: logs that began in the same millisecond can have an event at the same position.
func (c *checker) channelOf(a *account, it *item) string {
	if len(a.channels) == 1 {
		return a.channels[0]
	}
	found := ""
	for _, channel := range c.heard[it.position+" "+it.id] {
		if !slices.Contains(a.channels, channel) {
			continue
		}
		if found != "" {
			return ""
		}
		found = channel
	}
	return found
}

// missing adds what the subscriber should have been given and was not.
func (c *checker) missing(a *account, items []item, given map[string]int, gaps map[string][]int, b *balance) {
	excused := make(map[string][]bool, len(a.channels))
	for _, channel := range a.channels {
		excused[channel] = c.excused(channel, items)
	}
	seen := make(map[string]bool) // ids that were looked at, in an earlier log
	for _, channel := range a.channels {
		for i, e := range c.logs[channel] {
			if _, ok := given[e.id]; ok || seen[e.id] {
				continue
			}
			seen[e.id] = true
			told := excused[channel][i]
			for _, other := range a.channels {
				if n, there := c.index[other][e.id]; there {
					told = told || excused[other][n]
				} else {
					told = told || c.toldSince(other, e.id, items, gaps)
				}
			}
			switch {
			case told:
			case c.shardLost(a, e.id, channel):
				b.corners++
			default:
				b.lost++
				b.note("%s was not given %s, which is at %s %s: %s", a.name, e.id, channel, e.position, c.story(a, e.id, items, gaps))
			}
		}
	}
	// What was acknowledged and then rolled back.
	for id, ev := range c.events {
		if _, ok := given[id]; ok || seen[id] || !ev.acked || ev.begun.Before(a.since) {
			continue
		}
		told, mine := false, false
		for _, channel := range a.channels {
			if slices.Contains(ev.channels, channel) {
				mine = true
				told = told || c.toldSince(channel, id, items, gaps)
			}
		}
		if mine && !told {
			b.untold++
		}
	}
}

// excused tells for each entry of a log whether a gap was announced in its place: between
// the entries around it that came from this log.
func (c *checker) excused(channel string, items []item) []bool {
	entries := c.logs[channel]
	told := make([]bool, len(entries))
	last, gap := -1, false
	tell := func(until int) {
		for i := last + 1; gap && i < until; i++ {
			told[i] = true
		}
	}
	for _, it := range items {
		if it.channel != channel {
			continue
		}
		if it.id == "" {
			gap = true
			continue
		}
		i, ok := c.index[channel][it.id]
		if !ok || entries[i].position != it.position {
			continue // rolled back later
		}
		tell(i)
		last, gap = max(last, i), false
	}
	tell(len(entries))
	return told
}

// toldSince tells whether a gap of the channel was announced after an event of it was
// published.
func (c *checker) toldSince(channel, id string, items []item, gaps map[string][]int) bool {
	ev := c.events[id]
	return ev != nil && slices.Contains(ev.channels, channel) && slices.ContainsFunc(gaps[channel], func(i int) bool {
		return items[i].at.After(ev.begun)
	})
}

// settled tells whether nothing that is in the logs is missing in an account.
func (c *checker) settled(a *account) bool {
	b := c.account(a)
	return b.lost == 0
}

// story tells what to look at where an event was lost.
func (c *checker) story(a *account, id string, items []item, gaps map[string][]int) string {
	ev := c.events[id]
	if ev == nil {
		return "nobody has published it"
	}
	const clock = "05.000"
	story := "published " + ev.begun.Format(clock)
	for _, channel := range a.channels {
		if !slices.Contains(ev.channels, channel) {
			continue
		}
		if i, ok := c.index[channel][id]; ok {
			story += fmt.Sprintf("; %s has it at %s", channel, c.logs[channel][i].position)
		} else {
			story += fmt.Sprintf("; %s has lost it", channel)
		}
		for _, i := range gaps[channel] {
			story += fmt.Sprintf(", gap %s after %s told %s", items[i].reason, items[i].position, items[i].at.Format(clock))
		}
	}
	return story
}

// follows tells whether a position is behind another one in the same log.
func follows(position, before string) bool {
	epoch, seq, _ := strings.Cut(position, "-")
	epochBefore, seqBefore, _ := strings.Cut(before, "-")
	if len(seq) != len(seqBefore) {
		return epoch == epochBefore && len(seq) > len(seqBefore)
	}
	return epoch == epochBefore && seq > seqBefore
}

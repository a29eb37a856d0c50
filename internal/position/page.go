package position

// A Reason says why events are missing.
type Reason string

// The reasons of a gap, as a stream tells them.
const (
	Trimmed    Reason = "trimmed"
	Lost       Reason = "lost"
	Rewound    Reason = "rewound"
	Unreadable Reason = "unknown"
	Unlogged   Reason = "unlogged"
)

// A Page is the state of a log, and some consecutive entries of it.
type Page struct {
	Last    Position // of the last append
	LastID  string   // of the event at last, "" if that is not known
	First   Position // of the oldest entry; zero when there is none
	Asked   Position // where the read began; zero: at the oldest entry
	Entries []LogEntry
}

type LogEntry struct {
	Pos   Position
	Event []byte
	Also  string // where the event is in other logs, as in append.lua
}

// Origin is the position right before the oldest entry.
func (p *Page) Origin() Position {
	if p.First.IsZero() { // there is none, any more or yet
		return p.Last
	}
	return Position{Epoch: p.First.Epoch, Seq: p.First.Seq - 1}
}

// Resume decides how a reader at pos goes on in the log: from which position, and whether something
// is missing before it ("" when not). The page's entries, if any, begin at or before pos. This is the
// one place that decides what a gap is.
func (p *Page) Resume(pos Position) (Position, Reason) {
	switch {
	case pos.IsZero():
		return p.Origin(), ""
	case pos == Unknown:
		return p.Origin(), Unreadable
	case p.Last.Epoch != pos.Epoch:
		return p.Origin(), Lost
	case pos.Seq > p.Last.Seq || pos.Seq == p.Last.Seq && !pos.Same(p.Last):
		return p.Last, Rewound
	}
	if origin := p.Origin(); origin.Seq > pos.Seq {
		return origin, Trimmed
	}
	for i := range p.Entries {
		switch e := &p.Entries[i]; {
		case e.Pos.Seq < pos.Seq:
		case e.Pos.Seq == pos.Seq && !e.Pos.Same(pos):
			return e.Pos, Rewound
		case e.Pos.Seq > pos.Seq && !e.Pos.Follows(pos) && p.Asked.Seq <= pos.Seq:
			// Somebody has deleted entries. (A page that begins behind pos, read
			// for another reader, would not tell.)
			return Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq - 1}, Trimmed
		case e.Pos.Seq > pos.Seq:
			return pos, ""
		}
	}
	if p.Asked.Epoch == pos.Epoch && p.Asked.Seq == pos.Seq && pos.Seq < p.Last.Seq {
		// A page that begins at pos always has the entry behind it, if there is one:
		// the newest ones were deleted.
		return p.Last, Trimmed
	}
	return pos, ""
}

// After gives the entries behind pos, up to the first hole; Resume has returned
// pos.
func (p *Page) After(pos Position) []LogEntry {
	for i := range p.Entries {
		if p.Entries[i].Pos.Follows(pos) {
			end := i + 1
			for end < len(p.Entries) && p.Entries[end].Pos.Follows(p.Entries[end-1].Pos) {
				end++
			}
			return p.Entries[i:end]
		}
	}
	return nil
}

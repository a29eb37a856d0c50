package position

// A Reason says why events are missing.
type Reason string

// The reasons of a gap, as clients read them in stream.gap.
const (
	Trimmed    Reason = "trimmed"  // the log has dropped the entries
	Lost       Reason = "lost"     // the log is another one
	Rewound    Reason = "rewound"  // the log went back, or has another event there
	Unreadable Reason = "unknown"  // the place is not known
	Unlogged   Reason = "unlogged" // foreign events are missing, which no log has
)

// A Page is the state of a log when it was read, and some of its entries, in order.
type Page struct {
	Last    Position // position of the last append
	LastID  string   // id of the event at Last, "" if unknown
	Ended   bool     // the log ends with the event at Last: there will be no other
	First   Position // position of the oldest entry; zero when there is none
	Asked   Position // where the read began; zero means the oldest entry
	Entries []LogEntry
}

type LogEntry struct {
	Pos   Position
	Event []byte
	Also  string // the entry's also
	Final bool   // the log ends with this entry
}

// Origin gives the position right before the oldest entry. In an empty log, that is the end.
func (p *Page) Origin() Position {
	if p.First.IsZero() {
		return p.Last
	}
	return Position{Epoch: p.First.Epoch, Seq: p.First.Seq - 1}
}

// Resume decides how a reader at pos goes on in the log. It gives the position to go on from, and
// the reason why something is missing before it, "" if nothing is. The entries, if there are any,
// should begin at or before pos. This is the one place that decides what a gap in a log is.
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
			// Somebody has deleted entries. A read that began behind pos would prove nothing.
			return Position{Epoch: e.Pos.Epoch, Seq: e.Pos.Seq - 1}, Trimmed
		case e.Pos.Seq > pos.Seq:
			return pos, ""
		}
	}
	if p.Asked.Epoch == pos.Epoch && p.Asked.Seq == pos.Seq && pos.Seq < p.Last.Seq {
		// A page that begins at pos has the entry behind it, if there is one. There is none: the
		// newest entries were deleted.
		return p.Last, Trimmed
	}
	return pos, ""
}

// After gives the entries behind pos, up to the first missing number. pos comes from Resume.
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

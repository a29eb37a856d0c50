package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// A logPage is the state of a log, and some consecutive entries of it.
type logPage struct {
	last    Position // of the last append
	lastID  string   // of the event at last, "" if that is not known
	first   Position // of the oldest entry; zero when there is none
	asked   Position // where the read began; zero: at the oldest entry
	entries []logEntry
}

type logEntry struct {
	pos   Position
	event []byte
	also  string // where the event is in other logs, as in append.lua
}

// origin is the position right before the oldest entry.
func (p *logPage) origin() Position {
	if p.first.IsZero() { // there is none, any more or yet
		return p.last
	}
	return Position{epoch: p.first.epoch, seq: p.first.seq - 1}
}

// resume decides how a reader at pos goes on in the log: from which position, and whether something
// is missing before it ("" when not). The page's entries, if any, begin at or before pos. This is the
// one place that decides what a gap is.
func (p *logPage) resume(pos Position) (Position, GapReason) {
	switch {
	case pos.IsZero():
		return p.origin(), ""
	case pos == unknown:
		return p.origin(), GapUnknown
	case p.last.epoch != pos.epoch:
		return p.origin(), GapLost
	case pos.seq > p.last.seq || pos.seq == p.last.seq && !pos.same(p.last):
		return p.last, GapRewound
	}
	if origin := p.origin(); origin.seq > pos.seq {
		return origin, GapTrimmed
	}
	for i := range p.entries {
		switch e := &p.entries[i]; {
		case e.pos.seq < pos.seq:
		case e.pos.seq == pos.seq && !e.pos.same(pos):
			return e.pos, GapRewound
		case e.pos.seq > pos.seq && !e.pos.follows(pos) && p.asked.seq <= pos.seq:
			// Somebody has deleted entries. (A page that begins behind pos, read
			// for another reader, would not tell.)
			return Position{epoch: e.pos.epoch, seq: e.pos.seq - 1}, GapTrimmed
		case e.pos.seq > pos.seq:
			return pos, ""
		}
	}
	if p.asked.epoch == pos.epoch && p.asked.seq == pos.seq && pos.seq < p.last.seq {
		// A page that begins at pos always has the entry behind it, if there is one:
		// the newest ones were deleted.
		return p.last, GapTrimmed
	}
	return pos, ""
}

// after gives the entries behind pos, up to the first hole; resume has returned
// pos.
func (p *logPage) after(pos Position) []logEntry {
	for i := range p.entries {
		if p.entries[i].pos.follows(pos) {
			end := i + 1
			for end < len(p.entries) && p.entries[end].pos.follows(p.entries[end-1].pos) {
				end++
			}
			return p.entries[i:end]
		}
	}
	return nil
}

// A readRequest asks for a page of one log.
type readRequest struct {
	name  string
	kind  ChannelKind
	from  Position // itself included; zero: from the oldest entry
	count int      // 0: the state alone
}

// pageBytes is where a page of events ends, however few they are.
const pageBytes = 256 << 10

// script gives the call of read.lua.
func (l *redisLog) script(r readRequest) (keys []string, args []any) {
	from := "-"
	if r.from.epoch > 0 {
		from = string(r.from.append(nil))
	}
	return []string{logKey(r.name), producersKey(r.name)},
		[]any{from, r.count, pageBytes, l.retention(r.kind).Age.Milliseconds(), l.least(r.name)}
}

// read gives a page of a log. Where there is no log, it begins.
func (l *redisLog) read(ctx context.Context, r readRequest) (*logPage, error) {
	keys, args := l.script(r)
	reply, err := readScript.run(ctx, l.client, keys, args...)
	return l.page(r, reply, err)
}

// readMany reads pages of several logs in one round trip.
func (l *redisLog) readMany(ctx context.Context, requests []readRequest) ([]*logPage, []error) {
	pages, errs := make([]*logPage, len(requests)), make([]error, len(requests))
	cmds := make([]*redis.Cmd, len(requests))
	pipe := l.client.Pipeline()
	for i, r := range requests {
		keys, args := l.script(r)
		cmds[i] = readScript.cmd(ctx, false, keys, args)
		_ = pipe.Process(ctx, cmds[i]) // only queues
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for i, cmd := range cmds {
		if isNoScript(cmd.Err()) {
			// In a pipeline there is no falling back. The first EVAL loads the
			// script, so those after it succeed at the first try.
			pages[i], errs[i] = l.read(ctx, requests[i])
		} else {
			pages[i], errs[i] = l.page(requests[i], cmd.Val(), cmd.Err())
		}
	}
	return pages, errs
}

// page makes a page of a reply.
func (l *redisLog) page(r readRequest, reply any, err error) (*logPage, error) {
	var p *logPage
	if err = l.unavailable(err); err == nil {
		p, err = parsePage(r.from, reply)
	}
	if err != nil {
		return nil, fmt.Errorf("read log of %s: %w", r.name, err)
	}
	l.saw(r.name, p.last)
	return p, nil
}

var errReadReply = errors.New("unexpected reply to read")

// parsePage reads a reply of read.lua.
func parsePage(asked Position, reply any) (*logPage, error) {
	parts, ok := reply.([]any)
	if !ok || len(parts) < 3 {
		return nil, errReadReply
	}
	p := &logPage{asked: asked}
	var err error
	if p.last, err = parsePositionOf(parts[0]); err != nil {
		return nil, err
	}
	if p.lastID, _ = parts[2].(string); p.lastID != "" {
		p.last.mark = fingerprint(p.lastID)
	}
	if parts[1] != "" {
		if p.first, err = parsePositionOf(parts[1]); err != nil {
			return nil, err
		}
	}
	for _, part := range parts[3:] {
		list, _ := part.([]any)
		p.entries = slices.Grow(p.entries, len(list))
		for _, item := range list {
			e, err := parseEntry(item)
			if err != nil {
				return nil, err
			}
			p.entries = append(p.entries, e)
		}
	}
	return p, nil
}

func parsePositionOf(v any) (Position, error) {
	s, _ := v.(string)
	return ParsePosition(s)
}

// parseEntry reads an entry as XRANGE gives it. One without an event is not an error here: it is
// skipped where events are decoded.
func parseEntry(item any) (e logEntry, err error) {
	parts, _ := item.([]any)
	if len(parts) != 2 {
		return e, errReadReply
	}
	if e.pos, err = parsePositionOf(parts[0]); err != nil {
		return e, err
	}
	fields, _ := parts[1].([]any)
	for i := 0; i+1 < len(fields); i += 2 {
		value, _ := fields[i+1].(string)
		switch fields[i] {
		case "event":
			e.event = []byte(value)
		case "also":
			e.also = value
		}
	}
	e.pos.mark = fingerprint(eventID(e.event))
	return e, nil
}

// eventID gives the id of an event as this bus writes it, nil for anything else: the
// same as read.lua.
func eventID(event []byte) []byte {
	s, ok := bytes.CutPrefix(event, []byte(`{"id":"`))
	end := bytes.IndexAny(s, `"\`)
	if !ok || end < 0 || s[end] != '"' {
		return nil
	}
	return s[:end]
}

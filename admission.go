package eventbus

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/syndarix/eventbus/internal/commit"
	"github.com/syndarix/eventbus/internal/reader"
)

// The admissions know how many subscriptions are open, and of which identities. At a limit a new
// subscription is refused. No open one is ended for it.
type admissions struct {
	mu      sync.Mutex // guards following
	n       int
	of      map[identity]map[*subscriber]bool
	revoked uint64 // counts revocations, and once more when the bus begins to hear of others
}

// An identity is the hash of [Subscription].Identity. The text may be a secret.
type identity [sha256.Size]byte

func identify(text string) identity { return sha256.Sum256([]byte(text)) }

// admit counts a subscriber in, unless a limit is reached.
func (b *Bus) admit(r *subscriber, who string) error {
	o, reg := &b.options, &b.admitted
	reg.mu.Lock()
	defer reg.mu.Unlock()
	if reg.n >= o.maxSubscribers {
		b.stats.refusedSubscribers.Add(1)
		return &LimitError{LimitSubscribers, reg.n + 1, o.maxSubscribers}
	}
	if who != "" {
		r.identity = identify(who)
		have := reg.of[r.identity]
		if len(have) >= o.maxPerIdentity {
			b.stats.refusedPerIdentity.Add(1)
			return &LimitError{LimitPerIdentity, len(have) + 1, o.maxPerIdentity}
		}
		if have == nil {
			if reg.of == nil {
				reg.of = make(map[identity]map[*subscriber]bool)
			}
			have = make(map[*subscriber]bool)
			reg.of[r.identity] = have
		}
		r.named = true
		have[r] = true
	}
	reg.n++
	return nil
}

// dismiss counts a subscriber out.
func (b *Bus) dismiss(r *subscriber) {
	reg := &b.admitted
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.n--
	if !r.named {
		return
	}
	have := reg.of[r.identity]
	if delete(have, r); len(have) == 0 {
		delete(reg.of, r.identity)
	}
}

// revoke ends the subscribers of an identity in this process.
func (b *Bus) revoke(who identity) {
	reg := &b.admitted
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.revoked++
	for r := range reg.of[who] {
		r.End(ErrRevoked)
	}
}

// revocations changes with every revocation that reaches this process.
func (b *Bus) revocations() uint64 {
	b.admitted.mu.Lock()
	defer b.admitted.mu.Unlock()
	return b.admitted.revoked
}

// open returns how many subscriptions there are.
func (a *admissions) open() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

// Revocations go through a log of their own, as events do. So a process whose connection broke
// misses none. The log need not keep them long: streams also ask authorize again at keepalives.
var (
	controlChannel   = Channel{kind: "eventbus", id: uuid.Nil.String()}
	controlRetention = Retention{Events: 1000, Age: time.Hour}
)

// A revocation is the payload of an event on the control channel.
type revocation struct {
	Identity string `json:"identity"` // base64url of the hash
}

// Revoke ends every open subscription that has this [Subscription].Identity, in all processes on
// this Redis whose buses have the same prefix. Iterators end with [ErrRevoked], streams of
// [Bus.Handler] between two frames. Revoke keeps nobody out: when the client comes back, authorize
// is called, and must refuse.
//
// In this process it takes effect at once, also with an error. An error, as of [Bus.Publish], says
// that other processes may not know. Their streams of [Bus.Handler] find out at the next
// keepalive, when they ask authorize. Iterators do not. Revoke is safe for concurrent use.
func (b *Bus) Revoke(ctx context.Context, identity string) error {
	if err := b.made(); err != nil {
		return err
	}
	if identity == "" {
		return invalid("revoke", "identity", "is empty")
	}
	hash := identify(identity)
	b.revoke(hash)
	payload, err := json.Marshal(revocation{base64.RawURLEncoding.EncodeToString(hash[:])})
	if err != nil {
		return err
	}
	ev := Event{ID: uuid.Must(uuid.NewV7()).String(), Type: "eventbus.revoked", Timestamp: time.Now(), ActorType: ActorSystem, Payload: payload}
	_, err = b.publish(ctx, commit.Event{ID: ev.ID, JSON: ev.wire().AppendJSON(nil), Channels: []string{controlChannel.String()}}, []Channel{controlChannel})
	return err
}

// watch ends the subscribers that another process revokes. It ends with the bus.
func (b *Bus) watch() {
	r := b.readers.New()
	defer r.Close()
	if r.Begin(b.ctx, reader.Subscription{Channels: []string{controlChannel.String()}}) != nil {
		return // the bus is closed
	}
	b.admitted.mu.Lock()
	b.admitted.revoked++ // Until now, the bus has heard of no revocation by another process.
	b.admitted.mu.Unlock()
	close(b.watches)
	for {
		st, err := r.Next(b.ctx, false)
		if err != nil {
			return
		}
		if st.Gap != nil {
			b.warn("revocations may have been missed; streams are asked again at their keepalive", fmt.Errorf("gap: %s", st.Gap.Reason))
		}
		for ev := range r.Events(st) {
			hash, err := revokedBy(ev.Payload)
			if err != nil {
				b.unreadable(err)
				continue
			}
			b.revoke(hash)
		}
	}
}

// revokedBy gives the identity of a revocation.
func revokedBy(payload []byte) (identity, error) {
	var rev revocation
	if err := json.Unmarshal(payload, &rev); err != nil {
		return identity{}, err
	}
	hash, err := base64.RawURLEncoding.DecodeString(rev.Identity)
	if err == nil && len(hash) != sha256.Size {
		err = errors.New("a revocation without an identity")
	}
	if err != nil {
		return identity{}, err
	}
	return identity(hash), nil
}

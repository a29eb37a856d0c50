package eventbus

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
)

// A schema is what the bus knows of a payload type: which fields it has, which
// of them must be there, and what absence means. It is read off the Go type once.
type schema struct {
	typ    reflect.Type
	fields []schemaField // none when the payload takes any object
	custom bool          // the type has its own MarshalJSON
}

type schemaField struct {
	name     string
	index    []int
	typ      reflect.Type
	required bool
	nullable bool    // null is a value
	omitZero bool    // the json tag says omitempty or omitzero
	fallback *string // what nil and absence mean
}

var (
	registry = struct {
		sync.RWMutex
		byType map[Type]*schema
		names  map[string]Type // the same keys, for registeredName
	}{byType: map[Type]*schema{}, names: map[string]Type{}}

	stringType    = reflect.TypeFor[string]()
	uuidType      = reflect.TypeFor[uuid.UUID]()
	marshalerType = reflect.TypeFor[json.Marshaler]()
)

func init() {
	for _, p := range []Payload{
		AgentSpawnedPayload{}, AgentStatusChangedPayload{}, AgentMessagePayload{}, AgentTerminatedPayload{},
		IssueCreatedPayload{}, IssueUpdatedPayload{}, IssueAssignedPayload{}, IssueClosedPayload{},
		SprintStartedPayload{}, SprintCompletedPayload{},
		ApprovalRequestedPayload{}, ApprovalGrantedPayload{}, ApprovalDeniedPayload{},
		ProjectCreatedPayload{}, ProjectUpdatedPayload{}, ProjectArchivedPayload{},
		WorkflowStartedPayload{}, WorkflowStepCompletedPayload{}, WorkflowCompletedPayload{}, WorkflowFailedPayload{},
	} {
		if err := register(reflect.TypeOf(p), p.EventType()); err != nil {
			panic(err)
		}
	}
}

// Register makes the type of P's events known, so that every bus in the program
// publishes them and checks their payload against P. Registering P again
// changes nothing. The error says that P's type is not of the form
// domain.action, belongs to another struct already, or that P is neither a
// struct nor a map with string keys. It is safe for concurrent use and usually
// called before the first bus is made.
func Register[P Payload]() error {
	t := reflect.TypeFor[P]()
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return fmt.Errorf("eventbus: register %s: it must be the struct itself, not a pointer or an interface", t)
	}
	var zero P
	return register(t, zero.EventType())
}

func register(t reflect.Type, typ Type) error {
	if !typ.wellFormed() {
		return fmt.Errorf("eventbus: register %s: type %s is not of the form domain.action", t, excerpt(string(typ)))
	}
	s, err := schemaOf(t)
	if err != nil {
		return fmt.Errorf("eventbus: register %s: %w", t, err)
	}
	registry.Lock()
	defer registry.Unlock()
	if have, ok := registry.byType[typ]; ok && have.typ != t {
		return fmt.Errorf("eventbus: register %s: type %q belongs to %s", t, typ, have.typ)
	}
	registry.byType[typ] = s
	registry.names[string(typ)] = typ
	return nil
}

func registered(t Type) (*schema, bool) {
	registry.RLock()
	defer registry.RUnlock()
	s, ok := registry.byType[t]
	return s, ok
}

// registeredName gives a registered type without making a string of it.
func registeredName(name []byte) (Type, bool) {
	registry.RLock()
	defer registry.RUnlock()
	t, ok := registry.names[string(name)]
	return t, ok
}

var schemas sync.Map // reflect.Type to *schema

func schemaOf(t reflect.Type) (*schema, error) {
	if s, ok := schemas.Load(t); ok {
		return s.(*schema), nil
	}
	s := &schema{typ: t, custom: t.Implements(marshalerType)}
	switch {
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
	case t.Kind() == reflect.Struct:
		for _, f := range jsonFields(t) {
			if f.promoted && throughPointer(t, f.Index) {
				return nil, fmt.Errorf("field %s: comes from an embedded pointer; embed the struct", f.Name)
			}
			_, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			field := schemaField{
				name:     f.json,
				index:    f.Index,
				typ:      f.Type,
				nullable: f.Type.Kind() == reflect.Pointer || f.Type.Kind() == reflect.Interface,
				omitZero: strings.Contains(options, "omit"),
			}
			switch tag := f.Tag.Get("eventbus"); {
			case tag == "":
			case tag == "required":
				field.required = true
			case strings.HasPrefix(tag, "default=") && f.Type == reflect.TypeFor[*string]():
				field.fallback = new(strings.TrimPrefix(tag, "default="))
				field.nullable = false
			default:
				return nil, fmt.Errorf("field %s: tag eventbus:%q is not required, or default=TEXT on a *string", f.Name, tag)
			}
			s.fields = append(s.fields, field)
		}
	default:
		return nil, fmt.Errorf("%s is neither a struct nor a map with string keys", t)
	}
	schemas.Store(t, s)
	return s, nil
}

// A jsonField is a field of a struct that encoding/json writes.
type jsonField struct {
	reflect.StructField        // its Index is that from the outermost struct
	json                string // its name there
	promoted            bool   // from an embedded struct
}

// jsonFields lists what encoding/json writes of a struct, in its order; of one
// name, the least deep. outer are the structs that t is embedded in.
func jsonFields(t reflect.Type, outer ...reflect.Type) []jsonField {
	var fields []jsonField
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Tag.Get("json") == "-" {
			continue
		}
		embedded := f.Type
		if embedded.Kind() == reflect.Pointer {
			embedded = embedded.Elem()
		}
		if f.Anonymous && name == "" && embedded.Kind() == reflect.Struct {
			if embedded == t || slices.Contains(outer, embedded) {
				continue // what it has is there already, less deep
			}
			for _, inner := range jsonFields(embedded, append(outer, t)...) {
				inner.Index = append([]int{i}, inner.Index...)
				inner.promoted = true
				fields = append(fields, inner)
			}
			continue
		}
		if !f.IsExported() {
			continue
		}
		fields = append(fields, jsonField{f, cmp.Or(name, f.Name), false})
	}
	return slices.DeleteFunc(slices.Clone(fields), func(f jsonField) bool {
		return slices.ContainsFunc(fields, func(g jsonField) bool { return g.json == f.json && len(g.Index) < len(f.Index) })
	})
}

// throughPointer tells whether the way to a field leads through a pointer.
func throughPointer(t reflect.Type, index []int) bool {
	for _, i := range index[:len(index)-1] {
		if t = t.Field(i).Type; t.Kind() == reflect.Pointer {
			return true
		}
	}
	return false
}

// isNil tells whether there is no payload, not even behind the interface.
func isNil(payload Payload) bool {
	v := reflect.ValueOf(payload)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// PayloadAs decodes the payload of an event into the struct of its type, with
// the defaults of the schema filled in:
//
//	msg, err := eventbus.PayloadAs[eventbus.AgentMessagePayload](ev)
//
// Fields that the struct does not have are ignored. The error is a
// [*ValidationError] that names every missing or malformed field, or "type"
// when the event is of another type than P's.
func PayloadAs[P Payload](ev Event) (P, error) {
	var payload P
	s, err := schemaOf(reflect.TypeFor[P]())
	if err != nil {
		return payload, fmt.Errorf("eventbus: payload of %s: %w", ev.Type, err)
	}
	if want := payload.EventType(); ev.Type != want {
		return payload, invalid("payload of "+string(want), "type", "is %s", excerpt(string(ev.Type)))
	}
	p := problems{subject: "payload of " + string(ev.Type)}
	raw := ev.Payload
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	if p.fields = s.decode(raw, reflect.ValueOf(&payload).Elem()); len(p.fields) > 0 {
		var zero P
		return zero, p.err()
	}
	return payload, nil
}

// check tells what is wrong with a payload.
func (s *schema) check(raw []byte) []FieldError {
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	return s.decode(raw, reflect.Value{})
}

// decode fills a payload from JSON; without one, it only checks.
func (s *schema) decode(raw []byte, into reflect.Value) []FieldError {
	if s.custom || len(s.fields) == 0 {
		if err := checkObject(raw); err != nil {
			return []FieldError{{"payload", err.Error()}}
		}
		if !into.IsValid() {
			into = reflect.New(s.typ).Elem()
		}
		if err := json.Unmarshal(raw, into.Addr().Interface()); err != nil {
			return []FieldError{{"payload", jsonProblem(err)}}
		}
		return nil
	}
	var few [16][]byte
	values := few[:]
	if len(s.fields) > len(few) {
		values = make([][]byte, len(s.fields))
	}
	err := eachMember(raw, func(name, value []byte) {
		for i := range s.fields {
			if s.fields[i].name == string(name) {
				values[i] = value
			}
		}
	})
	if err != nil {
		return []FieldError{{"payload", err.Error()}}
	}
	var p problems
	for i := range s.fields {
		f, value := &s.fields[i], values[i]
		switch {
		case value == nil && f.required:
			p.add(f.name, "is required")
		case value == nil && f.fallback != nil && into.IsValid():
			into.FieldByIndex(f.index).Set(reflect.ValueOf(new(*f.fallback)))
		case value == nil:
		case string(value) == "null" && !f.nullable:
			p.add(f.name, "is null")
		case !into.IsValid() && f.typ == stringType && value[0] == '"':
		default:
			var field reflect.Value
			if into.IsValid() {
				field = into.FieldByIndex(f.index)
			} else {
				field = reflect.New(f.typ).Elem()
			}
			if err := json.Unmarshal(value, field.Addr().Interface()); err != nil {
				p.add(f.name, "%s", jsonProblem(err))
			}
		}
	}
	return p.fields
}

// jsonProblem words an error of encoding/json without the value that caused it.
func jsonProblem(err error) string {
	if t, ok := err.(*json.UnmarshalTypeError); ok {
		where := ""
		if t.Field != "" {
			where = " at " + t.Field
		}
		kind, _, _ := strings.Cut(t.Value, " ") // "number 12" has the value in it
		return fmt.Sprintf("is a %s%s, not a %s", kind, where, t.Type)
	}
	return "is malformed"
}

// Types returns the registered types in alphabetical order.
func Types() []Type {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Sorted(maps.Keys(registry.byType))
}

// Package schema knows payload structs by reflection: which fields a payload has, which of them are
// required, and what a missing field means.
//
// It checks, reads and writes payloads by that, and has the registry of event types. Package
// eventbus calls it. Its errors name the field, but no value of a payload.
//
// It is safe for concurrent use. The registry has a lock, which is never held together with
// another. It starts no goroutines.
//
//	schema.go  the registry, the schema of a type, checking and reading a payload
//	encode.go  writing a payload, and what JSON cannot carry
package schema

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
	"github.com/syndarix/eventbus/internal/rawjson"
)

// A Schema is what is known of a payload type. It is made from the Go type once.
type Schema struct {
	typ    reflect.Type
	fields []field // none when the payload can be any object
	custom bool    // the type has its own MarshalJSON
}

type field struct {
	name     string
	index    []int
	typ      reflect.Type
	required bool
	nullable bool    // null is a value
	omitZero bool    // the json tag says omitempty or omitzero
	fallback *string // the value that nil and a missing field mean
}

var (
	registry = struct {
		sync.RWMutex
		byName map[string]*Schema
	}{byName: map[string]*Schema{}}

	stringType    = reflect.TypeFor[string]()
	uuidType      = reflect.TypeFor[uuid.UUID]()
	marshalerType = reflect.TypeFor[json.Marshaler]()
)

// Register makes an event type known, with payloads of type t. A second Go type for it is an error.
func Register(name string, t reflect.Type) error {
	s, err := Of(t)
	if err != nil {
		return err
	}
	registry.Lock()
	defer registry.Unlock()
	if have, ok := registry.byName[name]; ok && have.typ != t {
		return fmt.Errorf("type %q belongs to %s", name, have.typ)
	}
	registry.byName[name] = s
	return nil
}

// Registered gives the schema of an event type.
func Registered(name string) (*Schema, bool) {
	registry.RLock()
	defer registry.RUnlock()
	s, ok := registry.byName[name]
	return s, ok
}

// Names gives the registered types in alphabetical order.
func Names() []string {
	registry.RLock()
	defer registry.RUnlock()
	return slices.Sorted(maps.Keys(registry.byName))
}

var schemas sync.Map // reflect.Type to *Schema

// Of gives the schema of a struct, or of a map with string keys.
func Of(t reflect.Type) (*Schema, error) {
	if s, ok := schemas.Load(t); ok {
		return s.(*Schema), nil
	}
	s := &Schema{typ: t, custom: t.Implements(marshalerType)}
	switch {
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
	case t.Kind() == reflect.Struct:
		for _, f := range jsonFields(t) {
			if f.promoted && throughPointer(t, f.Index) {
				return nil, fmt.Errorf("field %s: comes from an embedded pointer; embed the struct", f.Name)
			}
			_, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			field := field{
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
				return nil, fmt.Errorf("field %s: tag eventbus:%q is unknown: it is required, or default=TEXT on a *string", f.Name, tag)
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
	reflect.StructField        // its Index counts from the outermost struct
	json                string // its name in JSON
	promoted            bool   // it comes from an embedded struct
}

// jsonFields lists the fields of a struct that encoding/json writes, in its order. Of fields with
// one name it lists the least deep. outer are the structs that t is embedded in.
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
				continue // its fields are listed already, less deep
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

// throughPointer reports whether the way to a field leads through a pointer.
func throughPointer(t reflect.Type, index []int) bool {
	for _, i := range index[:len(index)-1] {
		if t = t.Field(i).Type; t.Kind() == reflect.Pointer {
			return true
		}
	}
	return false
}

// Check gives what is wrong with a payload.
func (s *Schema) Check(raw []byte) rawjson.Faults {
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	return s.Decode(raw, reflect.Value{})
}

// Decode fills into from JSON. With the zero Value for into, it only checks.
func (s *Schema) Decode(raw []byte, into reflect.Value) rawjson.Faults {
	if s.custom || len(s.fields) == 0 {
		if err := rawjson.CheckObject(raw); err != nil {
			return rawjson.Faults{{Field: "payload", Problem: err.Error()}}
		}
		if !into.IsValid() {
			into = reflect.New(s.typ).Elem()
		}
		if err := json.Unmarshal(raw, into.Addr().Interface()); err != nil {
			return rawjson.Faults{{Field: "payload", Problem: jsonProblem(err)}}
		}
		return nil
	}
	var few [16][]byte
	values := few[:]
	if len(s.fields) > len(few) {
		values = make([][]byte, len(s.fields))
	}
	err := rawjson.EachMember(raw, func(name, value []byte) {
		for i := range s.fields {
			if s.fields[i].name == string(name) {
				values[i] = value
			}
		}
	})
	if err != nil {
		return rawjson.Faults{{Field: "payload", Problem: err.Error()}}
	}
	var p rawjson.Faults
	for i := range s.fields {
		f, value := &s.fields[i], values[i]
		switch {
		case value == nil && f.required:
			p.Add(f.name, "is required")
		case value == nil && f.fallback != nil && into.IsValid():
			into.FieldByIndex(f.index).Set(reflect.ValueOf(new(*f.fallback)))
		case value == nil:
		case string(value) == "null" && !f.nullable:
			p.Add(f.name, "is null")
		case !into.IsValid() && f.typ == stringType && value[0] == '"':
		default:
			var field reflect.Value
			if into.IsValid() {
				field = into.FieldByIndex(f.index)
			} else {
				field = reflect.New(f.typ).Elem()
			}
			if err := json.Unmarshal(value, field.Addr().Interface()); err != nil {
				p.Add(f.name, "%s", jsonProblem(err))
			}
		}
	}
	return p
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

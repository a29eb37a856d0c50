package schema

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/syndarix/eventbus/internal/rawjson"
)

// Encode gives the JSON of a payload. It leaves out a zero value only where the json tag says
// omitempty or omitzero.
func (s *Schema) Encode(v reflect.Value) (raw json.RawMessage, p rawjson.Faults) {
	if s.custom || len(s.fields) == 0 {
		return s.encodeWhole(v)
	}
	b := []byte{'{'}
	for i := range s.fields {
		f := &s.fields[i]
		fv := v.FieldByIndex(f.index)
		if f.omitZero && fv.IsZero() {
			continue
		}
		if f.required && fv.IsZero() && (f.typ == uuidType || fv.Kind() == reflect.Map) {
			p.Add(f.name, "is required")
			continue
		}
		before := len(p)
		if checkValue(fv, f.name, 0, p.Add); len(p) > before {
			continue
		}
		value, err := rawjson.Marshal(f.value(fv))
		if err != nil {
			p.Add(f.name, "cannot be written as JSON")
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(rawjson.AppendString(b, f.name), ':'), value...)
	}
	return append(b, '}'), p
}

// value gives what is written for a field: a nil slice or map is empty, a nil pointer the default.
func (f *field) value(v reflect.Value) any {
	switch {
	case v.Kind() == reflect.Slice && v.IsNil():
		return []struct{}{}
	case v.Kind() == reflect.Map && v.IsNil():
		return struct{}{}
	case f.fallback != nil && v.IsNil():
		return f.fallback
	}
	return v.Interface()
}

// encodeWhole writes a map, a struct without fields, or a type that has its own MarshalJSON.
func (s *Schema) encodeWhole(v reflect.Value) (raw json.RawMessage, p rawjson.Faults) {
	checkValue(v, "payload", 0, p.Add)
	if len(p) > 0 {
		return nil, p
	}
	if v.Kind() == reflect.Map && v.IsNil() {
		return json.RawMessage("{}"), nil
	}
	raw, err := rawjson.Marshal(v.Interface())
	if err != nil {
		p.Add("payload", "cannot be written as JSON")
		return nil, p
	}
	if err := rawjson.CheckObject(raw); err != nil {
		p.Add("payload", "%s", err)
	}
	return raw, p
}

// maxDepth is how deep a payload's values may nest. A value that contains itself is an error here,
// and no stack overflow.
const maxDepth = 1000

// checkValue reports what JSON cannot carry: NaN, infinities, raw JSON that is not valid, and text
// that is not UTF-8, which encoding/json would replace. It returns false when the value nests too
// deep. The search then ends: in a value that contains itself twice, it would take for ever.
func checkValue(v reflect.Value, path string, depth int, report func(path, format string, args ...any)) bool {
	if depth > maxDepth {
		report(path, "nests deeper than %d", maxDepth)
		return false
	}
	switch v.Kind() {
	case reflect.Float32, reflect.Float64:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			report(path, "is not a finite number")
		}
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			report(path, "%s", rawjson.ErrNotUTF8)
		}
	case reflect.Pointer, reflect.Interface:
		return v.IsNil() || checkValue(v.Elem(), path, depth+1, report)
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			if raw, ok := v.Interface().(json.RawMessage); ok && len(raw) > 0 && (!utf8.Valid(raw) || !json.Valid(raw)) {
				report(path, "%s", rawjson.ErrNotJSON)
			}
			return true
		}
		for i := range v.Len() {
			if !checkValue(v.Index(i), path+"["+strconv.Itoa(i)+"]", depth+1, report) {
				return false
			}
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			if k.Kind() == reflect.String && !utf8.ValidString(k.String()) {
				report(path, "has a key that %s", rawjson.ErrNotUTF8)
				continue
			}
			if !checkValue(v.MapIndex(k), path+"."+fmt.Sprint(k), depth+1, report) {
				return false
			}
		}
	case reflect.Struct:
		for _, f := range jsonFields(v.Type()) {
			field, err := v.FieldByIndexErr(f.Index)
			if err != nil {
				continue // it is behind an embedded nil pointer: encoding/json does not write it
			}
			if !checkValue(field, path+"."+f.json, depth+1, report) {
				return false
			}
		}
	}
	return true
}

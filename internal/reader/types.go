package reader

import "path"

// The bounds of [Subscription].Types.
const (
	MaxGlobs      = 32
	MaxGlobLength = 128
)

// A typeFilter is the globs of a subscription. It compares each type with them once.
type typeFilter struct {
	globs []string
	known map[string]bool
}

// mostKnownTypes bounds how many types a filter remembers. Programs have some dozens.
const mostKnownTypes = 256

func newTypeFilter(globs []string) *typeFilter {
	if len(globs) == 0 {
		return nil
	}
	return &typeFilter{globs: globs, known: make(map[string]bool)}
}

// has reports whether the filter lets the type through. A nil filter lets all through.
func (f *typeFilter) has(t string) bool {
	if f == nil {
		return true
	}
	has, ok := f.known[t]
	if ok {
		return has
	}
	for _, glob := range f.globs {
		if ok, _ := path.Match(glob, t); ok {
			has = true
			break
		}
	}
	if len(f.known) < mostKnownTypes {
		f.known[t] = has
	}
	return has
}

package eventbus_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/syndarix/eventbus"

// imports gives what each package under a folder imports, its tests left out.
func imports(t *testing.T, folder string) map[string][]string {
	t.Helper()
	found := make(map[string]map[string]bool)
	require.NoError(t, filepath.WalkDir(folder, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := path.Join(module, filepath.ToSlash(filepath.Dir(name)))
		if found[pkg] == nil {
			found[pkg] = make(map[string]bool)
		}
		for _, i := range file.Imports {
			to, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			found[pkg][to] = true
		}
		return nil
	}))
	all := make(map[string][]string)
	for pkg, of := range found {
		all[pkg] = slices.Sorted(maps.Keys(of))
	}
	return all
}

// TestImportsPointDown: a room that knew the API, or a library that few programs want, would be hard to
// move.
func TestImportsPointDown(t *testing.T) {
	rooms := imports(t, "internal")
	require.Greater(t, len(rooms), 9)
	for room, of := range rooms {
		if strings.HasPrefix(room, module+"/internal/testing/") {
			continue
		}
		require.NotContains(t, of, module, "%s imports the API", room)
		for _, to := range of {
			ours := strings.HasPrefix(to, module+"/internal/") && !strings.Contains(to, "/testing/")
			library := to == "github.com/redis/go-redis/v9" || to == "github.com/google/uuid"
			require.True(t, ours || library || !strings.Contains(to, "."), "%s imports %s", room, to)
		}
	}
}

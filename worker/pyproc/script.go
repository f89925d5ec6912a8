//go:build unix

package pyproc

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed script/guard.py script/treadle_runner/*.py script/bundled/*.py
var script embed.FS

// boot imports the runner's package from the folder in its last argument, so that its
// byte code is cached beside it. The working directory, first in the path of a program
// given with -c, comes back later: it may hold modules with names of the standard library.
const boot = "import sys; sys.path[:] = [sys.argv.pop()] + [p for p in sys.path if p]; " +
	"import treadle_runner.main as m; m.run()"

// writeScript puts the embedded program into a folder below dir named after its content
// and returns that folder.
func writeScript(dir string) (string, error) {
	sum := sha256.New()
	files := map[string][]byte{}
	err := fs.WalkDir(script, "script", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := script.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("script", filepath.FromSlash(path))
		if err != nil {
			return err
		}
		files[rel] = data
		fmt.Fprintf(sum, "%s %d\n", rel, len(data))
		sum.Write(data)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("read the embedded runner: %w", err)
	}
	root := filepath.Join(dir, "runner-"+hex.EncodeToString(sum.Sum(nil))[:16])
	for rel, data := range files {
		path := filepath.Join(root, rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return "", fmt.Errorf("write the runner: %w", err)
		}
		if have, err := os.ReadFile(path); err == nil && string(have) == string(data) {
			continue
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return "", fmt.Errorf("write the runner: %w", err)
		}
	}
	return root, nil
}

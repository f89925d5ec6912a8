package deploy

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func readToken(t *testing.T, name string) string {
	t.Helper()
	token := strings.TrimSpace(readFile(t, name))
	if !strings.HasPrefix(token, "tdl_") {
		t.Fatalf("%s holds no token", name)
	}
	return token
}

// linked makes a folder that shows what is mounted below one, by the last part of each place.
func linked(t *testing.T, mounts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for place, folder := range mounts {
		if err := os.Symlink(folder, filepath.Join(dir, filepath.Base(place))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func dial(ctx context.Context, host string, port int32) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err == nil {
		err = conn.Close()
	}
	return err
}

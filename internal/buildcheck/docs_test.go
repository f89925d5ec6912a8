package buildcheck

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// mdLink is the target of a link in Markdown.
	mdLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	// mdHeading is a heading, which has an anchor.
	mdHeading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	// notInAnchor is what an anchor leaves out of its heading.
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	// namedPath is what looks like a file or a folder in code quotes.
	namedPath = regexp.MustCompile("`([a-z][A-Za-z0-9_]*(?:/[A-Za-z0-9_.-]+)+|[a-z][a-z0-9_]*\\.go)`")
)

// anchors are those of a page's headings.
func anchors(text string) []string {
	var list []string
	for _, m := range mdHeading.FindAllStringSubmatch(text, -1) {
		bare := notInAnchor.ReplaceAllString(strings.ToLower(m[1]), "")
		list = append(list, strings.ReplaceAll(strings.TrimSpace(bare), " ", "-"))
	}
	return list
}

// TestLinks follows every link between pages of the repository, to its heading.
func TestLinks(t *testing.T) {
	all := files(t)
	exists := func(name string) bool {
		return name == "." || slices.ContainsFunc(all, func(f string) bool { return f == name || strings.HasPrefix(f, name+"/") })
	}
	followed := 0
	for _, page := range all {
		if path.Ext(page) != ".md" {
			continue
		}
		for _, m := range mdLink.FindAllStringSubmatch(string(read(t, page)), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, ":") {
				continue // of another site
			}
			target := page
			if file != "" {
				target = path.Join(path.Dir(page), file)
			}
			followed++
			switch {
			case !exists(target):
				t.Errorf("%s links to %s, and there is no %s", page, m[1], target)
			case anchor != "" && path.Ext(target) == ".md" && !slices.Contains(anchors(string(read(t, target))), anchor):
				t.Errorf("%s links to %s, and %s has no such heading", page, m[1], target)
			}
		}
	}
	if followed < 50 {
		t.Errorf("%d links were followed: the pattern finds too few", followed)
	}
}

// TestClientPages: the README leads to the page of each client, which begins with an
// installation and a first program.
func TestClientPages(t *testing.T) {
	readme := string(read(t, "README.md"))
	for page, begins := range map[string][2]string{
		"clients/python/README.md":     {"pip install", "treadle.Client()"},
		"clients/go/README.md":         {"go mod edit -require", "treadle.Dial("},
		"clients/typescript/README.md": {"npm ", "import "},
	} {
		if !strings.Contains(readme, "]("+page+")") {
			t.Errorf("README.md has no link to %s", page)
		}
		text := string(read(t, page))
		install, program := strings.Index(text, begins[0]), strings.Index(text, begins[1])
		if install < 0 || program < install || strings.Count(text[:program], "\n") > 60 {
			t.Errorf("%s: want an installation (%q) and then a first program (%q) in its first 60 lines", page, begins[0], begins[1])
		}
	}
}

// TestArchitectureNamesWhatExists: each file and folder that the page names is there.
func TestArchitectureNamesWhatExists(t *testing.T) {
	all := files(t)
	missing := func(name string) bool {
		return !slices.ContainsFunc(all, func(f string) bool {
			return f == name || strings.HasPrefix(f, name+"/") || strings.HasSuffix(f, "/"+name)
		})
	}
	named := namedPath.FindAllStringSubmatch(string(read(t, "docs/architecture.md")), -1)
	for _, m := range named {
		if missing(m[1]) {
			t.Errorf("docs/architecture.md names %s, which does not exist", m[1])
		}
	}
	if len(named) < 25 {
		t.Errorf("%d names were found: the pattern finds too few", len(named))
	}
	if !missing("store/mysqlstore") || missing("store/pebblestore") || missing("commit.go") {
		t.Error("what exists is told from what does not: no")
	}
}

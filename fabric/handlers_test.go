package fabric

import (
	"strings"
	"testing"

	"github.com/treadle-dev/treadle/task"
)

// TestHandlersAreRegisteredOnce: workers that come and go make no new functions, and a name by
// which nobody could submit is refused.
func TestHandlersAreRegisteredOnce(t *testing.T) {
	f := newFabric(t)
	longest := strings.Repeat("ü", task.MaxNameLength)
	for _, name := range []string{"double", "double", longest, longest} {
		if err := f.RegisterHandler(t.Context(), name); err != nil {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	list, err := f.ListFunctions(t.Context(), task.ID{}, 100)
	if err != nil || len(list) != 3 { // with f
		t.Errorf("%d functions, %v, want 3", len(list), err)
	}
	fn, err := f.Function(t.Context(), "double")
	if err != nil || fn.Runtime != task.GoRuntime("double") || fn.Queue != task.DefaultQueue || fn.CreatedBy != "" {
		t.Errorf("%+v, %v", fn, err)
	}
	for _, name := range []string{"", longest + "x", "caf\xe9"} {
		if err := f.RegisterHandler(t.Context(), name); task.CodeOf(err) != task.CodeInvalid {
			t.Errorf("%.20q: %v, want a refusal", name, err)
		}
	}
}

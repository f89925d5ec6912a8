package worker

import (
	"github.com/treadle-dev/treadle/internal/seededbug"
	"github.com/treadle-dev/treadle/task"
)

// falsified returns out. In a build with the tag "chaos" it can make every 20th success
// something else, which the checks of the chaos suite must notice.
func falsified(out task.Outcome) task.Outcome {
	if out.End != task.EndSucceeded {
		return out
	}
	end := task.EndNone
	switch {
	case seededbug.On(seededbug.FalseRaise):
		end = task.EndRaised
	case seededbug.On(seededbug.FalseTimeout):
		end = task.EndTimedOut
	case seededbug.On(seededbug.FalseExhausted):
		end = task.EndExhausted
	case seededbug.On(seededbug.FalseUnread):
		end = task.EndUnreadable
	case seededbug.On(seededbug.FalseLoss):
		end = task.EndLost
	case seededbug.On(seededbug.FalseCancel):
		end = task.EndCancelled
	}
	if end == task.EndNone || !seededbug.Every(20) {
		return out
	}
	bad := task.Fail(end, "a success that the chaos suite falsified")
	bad.RunTime = out.RunTime
	return bad
}

package main

import "github.com/spf13/cobra"

// serverCommands are the roles of this binary.
func serverCommands() []*cobra.Command {
	return []*cobra.Command{newUpCommand(), newServerCommand(), newDispatcherCommand(), newWorkerCommand()}
}

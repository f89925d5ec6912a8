package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// envPrefix starts the name of every flag's twin in the environment.
const envPrefix = "TREADLE_"

// envName is the twin of a flag: TREADLE_GRPC_ADDR for --grpc-addr.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// envValue is a flag's value that reads its twin in another form than the flag.
type envValue interface {
	// SetEnv replaces the value by the text of the variable.
	SetEnv(text string) error
}

// bindEnv gives every flag that the command has so far (call it last) its twin in the
// environment, named in the help. A flag on the command line goes before the
// variable, the variable before the default; an empty variable is no variable. The
// variables are read before the command runs, and a value that cannot be is a misuse
// that names the variable.
func bindEnv(cmd *cobra.Command) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			f.Usage += " (env " + envName(f.Name) + ")"
		}
	})
	completeChoices(cmd)
	next := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := readEnv(cmd); err != nil {
			return err
		}
		if next != nil {
			return next(cmd, args)
		}
		return nil
	}
}

func readEnv(cmd *cobra.Command) error {
	var first error
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		text := os.Getenv(envName(f.Name))
		if first != nil || f.Changed || f.Name == "help" || text == "" {
			return
		}
		var err error
		if v, ok := f.Value.(envValue); ok {
			err = v.SetEnv(text)
		} else {
			err = cmd.Flags().Set(f.Name, text)
		}
		if err != nil {
			first = misuse("environment variable %s=%q: %w", envName(f.Name), text, plainFlagError(err))
		}
		f.Changed = true
	})
	return first
}

// flagError says what a flag wants, like all other messages about flags.
func flagError(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	return fmt.Errorf("--%s %q: %w", invalid.GetFlag().Name, invalid.GetValue(), wanted(invalid))
}

// plainFlagError is flagError without the name of a flag, as nobody typed it.
func plainFlagError(err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	return wanted(invalid)
}

// wanted puts into words what Go's parsers only call invalid syntax.
func wanted(invalid *pflag.InvalidValueError) error {
	switch invalid.GetFlag().Value.Type() {
	case "int", "int32", "int64":
		return errors.New("want a whole number")
	case "float64":
		return errors.New("want a number")
	case "bool":
		return errors.New("want true or false")
	case "duration":
		return errors.New("want a duration, for example 500ms, 10s or 1h30m")
	default:
		return invalid.Unwrap()
	}
}

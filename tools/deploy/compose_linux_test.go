package deploy

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

const redisPassword = "0123456789abcdef"

// project loads the compose file as Docker Compose does.
func project(t *testing.T, env ...string) (*types.Project, error) {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{deployDir + "/compose.yaml"},
		cli.WithoutEnvironmentResolution, cli.WithEnv(env), cli.WithProfiles([]string{"*"}))
	if err != nil {
		return nil, err
	}
	return options.LoadProject(t.Context())
}

func loadProject(t *testing.T) *types.Project {
	t.Helper()
	p, err := project(t, "TREADLE_REDIS_PASSWORD="+redisPassword)
	if err != nil {
		t.Fatalf("deploy/compose.yaml: %v", err)
	}
	return p
}

// TestComposeWantsAPassword: there is no default one.
func TestComposeWantsAPassword(t *testing.T) {
	if _, err := project(t); err == nil || !strings.Contains(err.Error(), "TREADLE_REDIS_PASSWORD") {
		t.Errorf("without a password: %v, want an error that names the variable", err)
	}
}

// TestComposeIsLocked checks what every service must have, and what only some may.
func TestComposeIsLocked(t *testing.T) {
	p, list := loadProject(t), readStages(t)
	for name, s := range p.Services {
		if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || len(s.CapAdd) > 0 || s.Privileged ||
			!slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: want read_only, cap_drop ALL and no-new-privileges, nothing added", name)
		}
		if text := strings.Join(slices.Concat([]string(s.Entrypoint), []string(s.Command)), " "); strings.Contains(text, redisPassword) {
			t.Errorf("%s: the password is in the command line, which everybody on the machine can read", name)
		}
		if s.Build == nil {
			if s.User == "" || strings.HasPrefix(s.User, "0") || strings.HasPrefix(s.User, "root") {
				t.Errorf("%s: user %q: want one that is not root", name, s.User)
			}
			if !strings.Contains(s.Image, ":") || strings.HasSuffix(s.Image, ":latest") {
				t.Errorf("%s: image %s: want a tag", name, s.Image)
			}
		} else {
			stage := list[s.Build.Target]
			if stage == nil {
				t.Errorf("%s: target %q is no stage of the Dockerfile", name, s.Build.Target)
				continue
			}
			if file := filepath.Join(s.Build.Context, s.Build.Dockerfile); !sameFile(file, dockerfile) {
				t.Errorf("%s is built from %s", name, file)
			}
			for _, v := range s.Volumes {
				if v.Type == types.VolumeTypeVolume && !slices.Contains(imageOf(stage).folders, v.Target) {
					t.Errorf("%s: the image %s has no folder %s, so that a new volume there belongs to root", name, s.Build.Target, v.Target)
				}
			}
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes %s on %q: want loopback", name, port.Published, port.HostIP)
			}
		}
		if drain := drainOf(t, s.Command); drain > 0 && graceOf(s) <= drain {
			t.Errorf("%s: stop_grace_period %s, --drain-timeout %s: it would be killed while it drains", name, graceOf(s), drain)
		}
		if _, on := s.Networks["store"]; on && name != "redis" && s.Environment["TREADLE_STORE"] == nil {
			t.Errorf("%s is on Redis's network and does not use Redis", name)
		}
	}
	if p.Networks["store"].Internal != true {
		t.Error("the network of Redis can be reached from outside")
	}
}

func sameFile(a, b string) bool {
	a, errA := filepath.Abs(a)
	b, errB := filepath.Abs(b)
	return errA == nil && errB == nil && a == b
}

// drainOf reads --drain-timeout; 0 without one.
func drainOf(t *testing.T, args []string) time.Duration {
	t.Helper()
	for _, a := range args {
		if text, ok := strings.CutPrefix(a, "--drain-timeout="); ok {
			d, err := time.ParseDuration(text)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
	}
	return 0
}

func graceOf(s types.ServiceConfig) time.Duration {
	if s.StopGracePeriod == nil {
		return 10 * time.Second // what Docker gives
	}
	return time.Duration(*s.StopGracePeriod)
}

// TestComposeRuns starts every service of the compose file, in the order of their
// dependencies, and uses the cluster.
func TestComposeRuns(t *testing.T) {
	p, c := loadProject(t), newCluster(t)
	volumes := make(map[string]string)
	for name := range p.Volumes {
		volumes[name] = t.TempDir()
	}
	all := make(map[string][]*container)
	for name, s := range p.Services {
		for i := range max(1, scaleOf(s)) {
			x := containerOf(t, s, volumes)
			x.name, x.addr = fmt.Sprintf("%s-%d", name, i+1), c.address(name)
			all[name] = append(all[name], x)
		}
	}
	for _, xs := range all { // when all have addresses
		for _, x := range xs {
			configs(t, c, p, x)
		}
	}
	order := []string{"init", "redis", "server", "dispatcher-1", "dispatcher-2", "worker"}
	started := make(map[string]bool)
	for _, name := range order {
		for dep := range p.Services[name].DependsOn {
			if !started[dep] {
				t.Fatalf("%s depends on %s: this test starts them in the order %s", name, dep, order)
			}
		}
		for _, x := range all[name] {
			if name == "init" {
				for _, other := range order { // certificates must be good for the addresses as well
					x.argv = append(x.argv, all[other][0].addr)
				}
				c.run(x)
				c.run(x) // at each start of the cluster again
				continue
			}
			c.start(x)
			if check := p.Services[name].HealthCheck; check != nil {
				if check.Test[0] != "CMD" {
					t.Fatalf("%s: this test knows health checks that start with CMD, not %q", name, check.Test)
				}
				c.exec(x, "the health check", check.Test[1:])
			}
		}
		started[name] = true
	}
	for name := range p.Services {
		if !started[name] && name != "client" {
			t.Errorf("this test does not start %s: teach it", name)
		}
	}

	server, secrets := all["server"][0], volumes["client-secrets"]
	token := readToken(t, filepath.Join(secrets, "token"))
	double(t, client(t, filepath.Join(secrets, "ca.pem")), "https://"+server.addr+":8000", token)
	x := all["client"][0]
	x.argv = append(x.argv[:len(x.argv)-len(p.Services["client"].Command)], "workers", "--json")
	if out := c.run(x); strings.Count(out, "\n") != scaleOf(p.Services["worker"]) {
		t.Errorf("client workers --json says\n%s, want %d workers", out, scaleOf(p.Services["worker"]))
	}
}

func scaleOf(s types.ServiceConfig) int {
	if s.Deploy != nil && s.Deploy.Replicas != nil {
		return *s.Deploy.Replicas
	}
	return 1
}

// containerOf makes a container of a service.
func containerOf(t *testing.T, s types.ServiceConfig, volumes map[string]string) *container {
	t.Helper()
	x := &container{env: make(map[string]string), mounts: make(map[string]string), grace: graceOf(s)}
	entrypoint := []string(s.Entrypoint)
	if s.Build != nil {
		im := imageOf(readStages(t)[s.Build.Target])
		if len(entrypoint) == 0 {
			entrypoint = im.entrypoint
		}
		for k, v := range im.env {
			x.env[k] = v
		}
		for _, folder := range im.folders {
			x.mounts[folder] = t.TempDir()
		}
	}
	// What Compose reads "$$" as has been done by the loader.
	x.argv = slices.Concat(entrypoint, []string(s.Command))
	for k, v := range s.Environment {
		if v != nil {
			x.env[k] = *v
		}
	}
	for _, v := range s.Volumes {
		if v.Type != types.VolumeTypeVolume || volumes[v.Source] == "" {
			t.Fatalf("%s: this test knows named volumes, not %+v", s.Name, v)
		}
		x.mounts[v.Target] = volumes[v.Source]
	}
	// The init service writes to several folders below one that it is told.
	if s.Name == "init" {
		x.mounts["/etc/treadle"] = linked(t, x.mounts)
	}
	for _, ref := range s.Configs {
		x.mounts[ref.Target] = filepath.Join(t.TempDir(), ref.Source)
	}
	return x
}

// configs writes the files of a container that the compose file holds.
func configs(t *testing.T, c *cluster, p *types.Project, x *container) {
	t.Helper()
	for target, file := range x.mounts {
		cfg, ok := p.Configs[filepath.Base(file)]
		if !ok || filepath.Base(target) != cfg.Name && !strings.HasSuffix(cfg.Name, filepath.Base(target)) {
			continue
		}
		text := cfg.Content
		if text == "" {
			text = readFile(t, cfg.File)
		} else {
			text = c.place(x, text) + "\nbind " + x.addr + "\n"
		}
		write(t, file, text)
	}
}

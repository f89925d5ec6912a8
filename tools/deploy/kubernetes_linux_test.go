package deploy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// manifest is what `kubectl apply -k deploy/kubernetes` would send, by kind and name.
type manifest struct {
	dir string // a copy of deploy/, with secrets made
	c   *cluster
	// redis is the address that Redis will have, whose certificate and URL name it.
	redis     string
	addresses []string // of everybody else

	services   map[string]*corev1.Service
	secrets    map[string]*corev1.Secret
	configs    map[string]*corev1.ConfigMap
	workloads  map[string]*workload
	budgets    map[string]*policyv1.PodDisruptionBudget
	policies   map[string]*networkingv1.NetworkPolicy
	namespaces map[string]*corev1.Namespace
}

// workload is a Deployment or a StatefulSet.
type workload struct {
	name, service string // service is that of a StatefulSet
	replicas      int
	selector      *metav1.LabelSelector
	template      corev1.PodTemplateSpec
	claims        []corev1.PersistentVolumeClaim
}

func (w *workload) container() *corev1.Container { return &w.template.Spec.Containers[0] }

// render makes the secrets by the script that users run, and the objects by what kubectl
// has inside. Every field must be one that Kubernetes knows.
func render(t *testing.T) *manifest {
	t.Helper()
	m := &manifest{
		dir: t.TempDir(), c: newCluster(t),
		services: make(map[string]*corev1.Service), secrets: make(map[string]*corev1.Secret), configs: make(map[string]*corev1.ConfigMap),
		workloads: make(map[string]*workload), budgets: make(map[string]*policyv1.PodDisruptionBudget),
		policies: make(map[string]*networkingv1.NetworkPolicy), namespaces: make(map[string]*corev1.Namespace),
	}
	if err := os.CopyFS(m.dir, os.DirFS(deployDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(m.dir + "/kubernetes/secrets"); err != nil { // a developer's own
		t.Fatal(err)
	}
	m.redis = m.c.address()
	for range 16 {
		m.addresses = append(m.addresses, m.c.address())
	}
	cmd := exec.CommandContext(t.Context(), m.dir+"/kubernetes/secrets.sh", m.addresses...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary(t))+":"+os.Getenv("PATH"), "REDIS_HOST="+m.redis)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("secrets.sh: %v\n%s", err, out)
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), m.dir+"/kubernetes")
	if err != nil {
		t.Fatalf("kustomize: %v", err)
	}
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.add(r.GetApiVersion()+" "+r.GetKind(), text); err != nil {
			t.Errorf("%s %s: %v", r.GetKind(), r.GetName(), err)
		}
	}
	return m
}

// add decodes one object strictly: no field that is unknown, none twice.
func (m *manifest) add(kind string, text []byte) error {
	decode := func(into any) error {
		text, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return err
		}
		// As the API server reads it: names of fields in their own case.
		strict, err := kjson.UnmarshalStrict(text, into)
		return errors.Join(append(strict, err)...)
	}
	switch kind {
	case "v1 Namespace":
		var o corev1.Namespace
		err := decode(&o)
		m.namespaces[o.Name] = &o
		return err
	case "v1 Service":
		var o corev1.Service
		err := decode(&o)
		m.services[o.Name] = &o
		return err
	case "v1 Secret":
		var o corev1.Secret
		err := decode(&o)
		m.secrets[o.Name] = &o
		return err
	case "v1 ConfigMap":
		var o corev1.ConfigMap
		err := decode(&o)
		m.configs[o.Name] = &o
		return err
	case "apps/v1 Deployment":
		var o appsv1.Deployment
		err := decode(&o)
		m.workloads[o.Name] = &workload{name: o.Name, replicas: int(*o.Spec.Replicas), selector: o.Spec.Selector, template: o.Spec.Template}
		return err
	case "apps/v1 StatefulSet":
		var o appsv1.StatefulSet
		err := decode(&o)
		m.workloads[o.Name] = &workload{
			name: o.Name, service: o.Spec.ServiceName, replicas: int(*o.Spec.Replicas), selector: o.Spec.Selector,
			template: o.Spec.Template, claims: o.Spec.VolumeClaimTemplates,
		}
		return err
	case "policy/v1 PodDisruptionBudget":
		var o policyv1.PodDisruptionBudget
		err := decode(&o)
		m.budgets[o.Name] = &o
		return err
	case "networking.k8s.io/v1 NetworkPolicy":
		var o networkingv1.NetworkPolicy
		err := decode(&o)
		m.policies[o.Name] = &o
		return err
	default:
		return fmt.Errorf("this test does not know %s: teach it", kind)
	}
}

// TestStrictDecoding checks the check.
func TestStrictDecoding(t *testing.T) {
	m := &manifest{services: make(map[string]*corev1.Service)}
	for _, text := range []string{
		"metadata: {name: x}\nspec: {selectors: {a: b}}",
		"metadata: {name: x}\nspec: {ports: [{port: many}]}",
		"metadata: {name: x}\nspec: {Selector: {a: b}}",
	} {
		if err := m.add("v1 Service", []byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// TestPods checks what each pod must have.
func TestPods(t *testing.T) {
	m := render(t)
	if len(m.workloads) != 4 {
		t.Fatalf("there are %d workloads, want Redis, servers, dispatchers, workers", len(m.workloads))
	}
	for name, w := range m.workloads {
		spec, x := &w.template.Spec, w.container()
		fault := func(format string, args ...any) { t.Errorf(name+": "+format, args...) }
		if s, err := metav1.LabelSelectorAsSelector(w.selector); err != nil || !s.Matches(labels.Set(w.template.Labels)) {
			fault("the selector does not match the pods' own labels (%v)", err)
		}
		if len(spec.Containers) != 1 || len(spec.InitContainers) != 0 {
			fault("this test knows pods of one container")
		}
		if p := spec.SecurityContext; p == nil || !isTrue(p.RunAsNonRoot) || p.RunAsUser == nil || *p.RunAsUser == 0 ||
			p.SeccompProfile == nil || p.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			fault("want runAsNonRoot, a user and the runtime's seccomp profile")
		}
		if s := x.SecurityContext; s == nil || !isTrue(s.ReadOnlyRootFilesystem) || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
			s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL") || len(s.Capabilities.Add) > 0 {
			fault("want a read-only root, no escalation and no capabilities")
		}
		if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
			fault("want automountServiceAccountToken: false: nothing here calls Kubernetes")
		}
		if spec.EnableServiceLinks == nil || *spec.EnableServiceLinks {
			fault("want enableServiceLinks: false: variables that start with TREADLE_ are flags")
		}
		if x.Resources.Requests.Cpu().IsZero() || x.Resources.Requests.Memory().IsZero() || x.Resources.Limits.Memory().IsZero() {
			fault("want requests of CPU and memory and a limit of memory")
		}
		if x.ReadinessProbe == nil || x.LivenessProbe == nil {
			fault("want a readiness and a liveness probe")
		}
		grace := time.Duration(0)
		if spec.TerminationGracePeriodSeconds != nil {
			grace = time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second
		}
		if x.Lifecycle != nil && x.Lifecycle.PreStop != nil && x.Lifecycle.PreStop.Sleep != nil {
			grace -= time.Duration(x.Lifecycle.PreStop.Sleep.Seconds) * time.Second
		}
		if drain := max(drainOf(t, x.Args), 15*time.Second); grace <= drain {
			fault("terminationGracePeriodSeconds leaves %s to drain, want more than %s", grace, drain)
		}
		m.checkVolumes(t, w)
	}
}

func isTrue(b *bool) bool { return b != nil && *b }

// checkVolumes checks that what a pod mounts or reads is there, and that no secret is
// in a command line.
func (m *manifest) checkVolumes(t *testing.T, w *workload) {
	t.Helper()
	x := w.container()
	names := make(map[string]bool)
	for _, claim := range w.claims {
		names[claim.Name] = true
	}
	for _, v := range w.template.Spec.Volumes {
		names[v.Name] = true
		switch {
		case v.Secret != nil:
			if m.secrets[v.Secret.SecretName] == nil {
				t.Errorf("%s: there is no Secret %s", w.name, v.Secret.SecretName)
			}
			if mode := v.Secret.DefaultMode; mode == nil || *mode&0o037 != 0 {
				t.Errorf("%s: volume %s: want defaultMode 0440: servers refuse a token file that others can read", w.name, v.Name)
			}
		case v.ConfigMap != nil:
			if m.configs[v.ConfigMap.Name] == nil {
				t.Errorf("%s: there is no ConfigMap %s", w.name, v.ConfigMap.Name)
			}
		}
	}
	for _, mount := range x.VolumeMounts {
		if !names[mount.Name] {
			t.Errorf("%s mounts %s, which is no volume of it", w.name, mount.Name)
		}
	}
	line := strings.Join(slices.Concat(x.Command, x.Args), " ")
	for name, secret := range m.secrets {
		for key, value := range secret.Data {
			if strings.Contains(line, strings.TrimSpace(string(value))) {
				t.Errorf("%s: its command line shows %s of the Secret %s", w.name, key, name)
			}
		}
	}
	for _, e := range x.Env {
		if e.ValueFrom == nil {
			continue
		}
		ref := e.ValueFrom.SecretKeyRef
		if ref == nil || m.secrets[ref.Name] == nil || m.secrets[ref.Name].Data[ref.Key] == nil {
			t.Errorf("%s: %s: no Secret has what it refers to: %+v", w.name, e.Name, ref)
		}
	}
}

// TestReferences checks that Services, budgets and policies mean pods that exist.
func TestReferences(t *testing.T) {
	m := render(t)
	pods := func(what, name string, s *metav1.LabelSelector) *workload {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err == nil {
			for _, w := range m.workloads {
				if selector.Matches(labels.Set(w.template.Labels)) {
					return w
				}
			}
		}
		t.Errorf("%s %s selects no pods (%v)", what, name, err)
		return nil
	}
	hasPort := func(w *workload, name string) bool {
		return slices.ContainsFunc(w.container().Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
	}
	for name, s := range m.services {
		w := pods("Service", name, &metav1.LabelSelector{MatchLabels: s.Spec.Selector})
		for _, p := range s.Spec.Ports {
			if w != nil && !hasPort(w, p.TargetPort.String()) {
				t.Errorf("Service %s: pods have no port %s", name, p.TargetPort.String())
			}
		}
	}
	for name, w := range m.workloads {
		if w.service != "" && m.services[w.service] == nil {
			t.Errorf("%s: there is no Service %s", name, w.service)
		}
		covered := false
		for _, p := range m.policies {
			covered = covered || reflect.DeepEqual(p.Spec.PodSelector.MatchLabels, w.selector.MatchLabels)
		}
		if !covered {
			t.Errorf("no NetworkPolicy is about the pods of %s", name)
		}
		if w.replicas > 1 && m.budgets[name] == nil {
			t.Errorf("%s has no PodDisruptionBudget", name)
		}
	}
	for name, b := range m.budgets {
		if w := pods("PodDisruptionBudget", name, b.Spec.Selector); w != nil && b.Spec.MaxUnavailable == nil {
			t.Errorf("PodDisruptionBudget %s: want maxUnavailable, which lets nodes be drained at any number of replicas", name)
		}
	}
	for name, p := range m.policies {
		w := pods("NetworkPolicy", name, &p.Spec.PodSelector)
		for _, rule := range p.Spec.Ingress {
			for _, from := range rule.From {
				pods("NetworkPolicy", name+" (from)", from.PodSelector)
			}
			for _, port := range rule.Ports {
				if w != nil && !hasPort(w, port.Port.String()) {
					t.Errorf("NetworkPolicy %s: pods have no port %s", name, port.Port.String())
				}
			}
		}
	}
	if len(m.namespaces) != 1 {
		t.Errorf("%d namespaces, want one", len(m.namespaces))
	}
}

// TestKubernetesRuns starts every pod of the manifests, carries its probes out, and uses
// the cluster.
func TestKubernetesRuns(t *testing.T) {
	m := render(t)
	c := m.c
	images := map[string]image{"treadle:dev": imageOf(readStages(t)["server"]), "treadle-worker:dev": imageOf(readStages(t)["worker"])}
	free := slices.Clone(m.addresses)

	all := make(map[string][]*container)
	for _, name := range slices.Sorted(maps.Keys(m.workloads)) {
		w := m.workloads[name]
		for i := range w.replicas {
			x := m.pod(t, w, images)
			x.name, x.addr = fmt.Sprintf("%s-%d", name, i), m.redis
			if name != "treadle-redis" {
				x.addr, free = free[0], free[1:]
			}
			if w.service != "" {
				c.names[fmt.Sprintf("%s-%d.%s", name, i, w.service)] = x.addr
			}
			all[name] = append(all[name], x)
		}
	}
	hc := client(t, m.dir+"/kubernetes/secrets/client/ca.pem")
	for _, name := range []string{"treadle-redis", "treadle-server", "treadle-dispatcher", "treadle-worker"} {
		for _, x := range all[name] {
			if name == "treadle-redis" {
				m.redisFiles(t, x)
			}
			c.start(x)
			k := m.workloads[name].container()
			for what, p := range map[string]*corev1.Probe{"startup": k.StartupProbe, "liveness": k.LivenessProbe, "readiness": k.ReadinessProbe} {
				if p != nil {
					m.probe(x, k, what+" probe", p, hc)
				}
			}
		}
	}
	token := readToken(t, m.dir+"/kubernetes/secrets/client/token")
	for _, server := range all["treadle-server"] {
		double(t, hc, "https://"+server.addr+":8000", token)
	}
	status, body, err := call(t.Context(), hc, http.MethodGet, "https://"+all["treadle-server"][0].addr+":8000/v1/workers", token, "")
	if err != nil || status != http.StatusOK || strings.Count(body, `"name"`) != len(all["treadle-worker"]) {
		t.Errorf("workers: %d %s %v, want %d of them", status, body, err, len(all["treadle-worker"]))
	}
}

// pod makes the container of one replica, with its Secrets as files.
func (m *manifest) pod(t *testing.T, w *workload, images map[string]image) *container {
	t.Helper()
	k := w.container()
	x := &container{
		env: make(map[string]string), mounts: make(map[string]string), argv: slices.Concat(k.Command, k.Args),
		grace: time.Duration(*w.template.Spec.TerminationGracePeriodSeconds) * time.Second,
	}
	if im, ok := images[k.Image]; ok {
		maps.Copy(x.env, im.env)
		if len(k.Command) == 0 {
			x.argv = slices.Concat(im.entrypoint, k.Args)
		}
	} else if len(k.Command) == 0 {
		t.Fatalf("%s: what %s runs is not known here: give it a command", w.name, k.Image)
	}
	for _, e := range k.Env {
		x.env[e.Name] = e.Value
		if e.ValueFrom != nil {
			x.env[e.Name] = string(m.secrets[e.ValueFrom.SecretKeyRef.Name].Data[e.ValueFrom.SecretKeyRef.Key])
		}
	}
	for _, mount := range k.VolumeMounts {
		dir := t.TempDir()
		x.mounts[mount.MountPath] = dir
		for _, v := range w.template.Spec.Volumes {
			switch {
			case v.Name != mount.Name:
			case v.Secret != nil:
				for key, value := range m.secrets[v.Secret.SecretName].Data {
					write(t, filepath.Join(dir, key), string(value))
				}
			case v.ConfigMap != nil:
				for key, value := range m.configs[v.ConfigMap.Name].Data {
					write(t, filepath.Join(dir, key), value)
				}
			}
		}
	}
	return x
}

// redisFiles fits Redis's own settings to this machine.
func (m *manifest) redisFiles(t *testing.T, x *container) {
	t.Helper()
	file := x.mounts["/etc/redis"] + "/redis.conf"
	write(t, file, m.c.place(x, readFile(t, file))+"\nbind "+x.addr+"\n")
}

// probe carries out what the kubelet does, until it passes.
func (m *manifest) probe(x *container, k *corev1.Container, what string, p *corev1.Probe, hc *http.Client) {
	port := func(name string) int32 {
		for _, p := range k.Ports {
			if p.Name == name {
				return p.ContainerPort
			}
		}
		m.c.t.Fatalf("%s: %s: there is no port %s", x.name, what, name)
		return 0
	}
	switch {
	case p.HTTPGet != nil:
		url := fmt.Sprintf("%s://%s:%d%s", strings.ToLower(string(p.HTTPGet.Scheme)), x.addr, port(p.HTTPGet.Port.String()), p.HTTPGet.Path)
		m.c.eventually(x, what, func(ctx context.Context) error {
			status, body, err := call(ctx, hc, http.MethodGet, url, "", "")
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%s answers %d %s", url, status, body)
			}
			return err
		})
	case p.Exec != nil:
		m.c.exec(x, what, p.Exec.Command)
	case p.TCPSocket != nil:
		m.c.eventually(x, what, func(ctx context.Context) error { return dial(ctx, x.addr, port(p.TCPSocket.Port.String())) })
	default:
		m.c.t.Fatalf("%s: this test does not know the %s: teach it", x.name, what)
	}
}

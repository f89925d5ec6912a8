package auth

import (
	"slices"
	"strings"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	treadlev1 "github.com/treadle-dev/treadle/gen/go/treadle/v1"
	"github.com/treadle-dev/treadle/task"
)

// Rule says who may call a method.
type Rule struct {
	// Roles are admitted, and nobody else. Ignored when Public.
	Roles []Role
	// Public admits callers without a token.
	Public bool
	// Certificate asks for a verified client certificate as well, on a server that was
	// given a CA for them.
	Certificate bool
	// Cost is what a call counts against the rate limit of the caller. Every rule has one.
	Cost Cost
	// MaxMessage bounds one message of the caller over gRPC, in bytes. [Payload] is as much
	// as the payload limit of the server makes it. A gRPC method without one is not served.
	MaxMessage int
}

// Limits of one message of a caller.
const (
	// Payload marks methods that carry payloads.
	Payload = -1
	// publicMessage is for callers without a token. Health takes the name of a service.
	publicMessage = 4 << 10
	// readMessage is for ids, names, filters and page tokens.
	readMessage = 64 << 10
	// idsMessage has room for 10,000 task ids of 38 bytes.
	idsMessage = 512 << 10
)

// Cost says how the cost of a call is found: what it counts against --rate-limit.
type Cost int

// Costs. The zero value is none of them, so that nobody forgets to choose.
const (
	// CostNothing: the method has limits of its own, or is for probes.
	CostNothing Cost = iota + 1
	// CostOne: 1 a call.
	CostOne
	// CostItems: 1 for each registration or submission.
	CostItems
	// CostPage: 1, and 1 more for each 100 rows that are asked for.
	CostPage
	// CostIDs: 1, and 1 more for each 100 ids that are waited for.
	CostIDs
)

var (
	forClients = Rule{Roles: []Role{Client, Admin}, Cost: CostOne, MaxMessage: readMessage}
	forLists   = Rule{Roles: []Role{Client, Admin}, Cost: CostPage, MaxMessage: readMessage}
	forSubmits = Rule{Roles: []Role{Client, Admin}, Cost: CostItems, MaxMessage: Payload}
	forWorkers = Rule{Roles: []Role{Worker, Admin}, Certificate: true, Cost: CostNothing, MaxMessage: Payload}
	// What a running task may do as well. Which tasks it reaches is checked by the server.
	ofTasks     = Rule{Roles: []Role{Client, Admin, Task}, Cost: CostOne, MaxMessage: readMessage}
	waitsOfTask = Rule{Roles: []Role{Client, Admin, Task}, Cost: CostIDs, MaxMessage: idsMessage}
	makesTasks  = Rule{Roles: []Role{Client, Admin, Task}, Cost: CostItems, MaxMessage: Payload}
	forAnyToken = Rule{Roles: Roles(), Cost: CostOne, MaxMessage: readMessage}
	forAll      = Rule{Public: true, Cost: CostNothing, MaxMessage: publicMessage}
)

// table has every method of every service that a server registers, the health of the
// server and reflection included. A server does not start with a method that is missing
// here.
var table = map[string]Rule{
	treadlev1.FabricService_RegisterFunction_FullMethodName: makesTasks,
	treadlev1.FabricService_GetFunction_FullMethodName:      ofTasks,
	treadlev1.FabricService_ListFunctions_FullMethodName:    forLists,
	treadlev1.FabricService_DeleteFunction_FullMethodName:   forClients,
	treadlev1.FabricService_Execute_FullMethodName:          makesTasks,
	treadlev1.FabricService_ExecuteBatch_FullMethodName:     makesTasks,
	treadlev1.FabricService_Call_FullMethodName:             makesTasks,
	treadlev1.FabricService_GetTask_FullMethodName:          ofTasks,
	treadlev1.FabricService_GetResult_FullMethodName:        ofTasks,
	treadlev1.FabricService_AwaitResults_FullMethodName:     waitsOfTask,
	treadlev1.FabricService_ListTasks_FullMethodName:        forLists,
	treadlev1.FabricService_WatchTask_FullMethodName:        ofTasks,
	treadlev1.FabricService_CancelTask_FullMethodName:       ofTasks,
	treadlev1.FabricService_GetLogs_FullMethodName:          ofTasks,
	treadlev1.FabricService_ListWorkers_FullMethodName:      forLists,
	treadlev1.FabricService_ListQueues_FullMethodName:       forLists,
	treadlev1.FabricService_GetServerInfo_FullMethodName:    forClients,

	treadlev1.RootService_RegisterRoot_FullMethodName:  forSubmits,
	treadlev1.RootService_ExecuteRoot_FullMethodName:   forSubmits,
	treadlev1.RootService_GetRootStatus_FullMethodName: forClients,
	treadlev1.RootService_GetRootResult_FullMethodName: forClients,

	treadlev1.WorkerService_Push_FullMethodName: forWorkers,
	treadlev1.WorkerService_Pull_FullMethodName: forWorkers,

	// Probes and balancers have no token, and health says nothing but yes or no.
	healthpb.Health_Check_FullMethodName: forAll,
	healthpb.Health_List_FullMethodName:  forAll,
	healthpb.Health_Watch_FullMethodName: forAll,

	// Reflection shows the whole contract, so it is for those who may use some of it.
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      forAnyToken,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": forAnyToken,

	// What is not gRPC, by its path.
	"GET /":             forAnyToken,
	"GET /openapi.json": forAnyToken,
	"GET /metrics":      forAnyToken,
	"GET /healthz":      forAll,
	"GET /readyz":       forAll,
}

// RuleOf returns the rule of a method, "/package.Service/Method", or of a page, "GET
// /path". ok is false for those without an entry: they are refused.
func RuleOf(method string) (r Rule, ok bool) {
	r, ok = table[method]
	return r, ok
}

// Authorize says why a principal may not call a method: an error of [task.CodeDenied].
func Authorize(method string, p Principal) error {
	rule, ok := table[method]
	switch {
	case !ok:
		return task.Errorf(task.CodeDenied, "", "nobody may call %s", task.ClipText(method, 128))
	case rule.Public || slices.Contains(rule.Roles, p.Role):
		return nil
	}
	return task.Errorf(task.CodeDenied, "", "a %s token (%s) may not call %s: it takes a token of the role %s", p.Role, p.ID, method, rule.names())
}

// AuthorizeREST says why a principal may call no method over REST at all. It is what can
// be said before it is known which method a request means; the method's own rule follows.
func AuthorizeREST(p Principal) error {
	if slices.Contains(overREST.Roles, p.Role) {
		return nil
	}
	return task.Errorf(task.CodeDenied, "", "a %s token (%s) may not use the API: it takes a token of the role %s", p.Role, p.ID, overREST.names())
}

// overREST admits whoever may call any method of the two services that REST has.
var overREST = func() (all Rule) {
	for _, role := range Roles() {
		for method, rule := range table {
			service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
			if (service == treadlev1.FabricService_ServiceDesc.ServiceName || service == treadlev1.RootService_ServiceDesc.ServiceName) &&
				slices.Contains(rule.Roles, role) && !slices.Contains(all.Roles, role) {
				all.Roles = append(all.Roles, role)
			}
		}
	}
	return all
}()

func (r Rule) names() string {
	names := make([]string, len(r.Roles))
	for i, role := range r.Roles {
		names[i] = string(role)
	}
	return strings.Join(names, " or ")
}

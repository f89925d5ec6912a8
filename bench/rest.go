package bench

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// emptyCall is the pickle of ((), {}): no arguments.
var emptyCall = []byte("\x80\x04)}\x86.")

// rootPoll is the pause between two looks for a result.
const rootPoll = time.Millisecond

// restClient makes the calls of the REST scenarios, over one connection.
type restClient struct {
	http  *http.Client
	base  string
	token string
	// Bodies are the same each time.
	callURL           string
	callBody, addBody []byte
}

func newRESTClient(cfg Config, function string) *restClient {
	body, err := json.Marshal(map[string]string{
		"function_id": function, "payload": base64.StdEncoding.EncodeToString(emptyCall),
	})
	if err != nil {
		panic(err) // a map of strings is always JSON
	}
	base := "http://" + cfg.HTTPAddr
	if cfg.TLS != nil {
		base = "https://" + cfg.HTTPAddr
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 4, TLSClientConfig: cfg.TLS}
	return &restClient{
		http: &http.Client{Transport: transport, Timeout: time.Minute}, base: base, token: cfg.Token,
		callURL: base + "/v1/functions/" + function + ":call", callBody: []byte(`{"args": []}`), addBody: body,
	}
}

func (c *restClient) close() { c.http.CloseIdleConnections() }

// do makes one request and reads the answer's JSON.
func (c *restClient) do(ctx context.Context, method, url string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, data)
	}
	return json.Unmarshal(data, answer)
}

type restAnswer struct {
	TaskID string `json:"task_id"`
	Status string `json:"status"`
}

func (c *restClient) call(ctx context.Context) error {
	var answer restAnswer
	if err := c.do(ctx, http.MethodPost, c.callURL, c.callBody, &answer); err != nil {
		return err
	}
	if answer.Status != "COMPLETED" {
		return fmt.Errorf("task %s is %s", answer.TaskID, answer.Status)
	}
	return nil
}

func (c *restClient) root(ctx context.Context) error {
	var answer restAnswer
	if err := c.do(ctx, http.MethodPost, c.base+"/execute_function", c.addBody, &answer); err != nil {
		return err
	}
	url := c.base + "/result/" + answer.TaskID
	for {
		// The route does not wait, so clients poll. Asking without a pause would take the
		// processor from those who work on the answer.
		if err := c.do(ctx, http.MethodGet, url, nil, &answer); err != nil {
			return err
		}
		switch answer.Status {
		case "COMPLETED":
			return nil
		case "QUEUED", "RUNNING":
			time.Sleep(rootPoll)
		default:
			return fmt.Errorf("task %s is %s", answer.TaskID, answer.Status)
		}
	}
}

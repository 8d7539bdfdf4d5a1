// Checks a running server with grpc-go, as a caller sees it. Needs an action
// that answers at ROUTE (default /reports/build) behind the target "default";
// BACKJOB_ADDR (default 127.0.0.1:50051) is the server. Prints a line a check.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	pb "backjob.example/go/backjobv1"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const nobody = "01900000-0000-7000-8000-000000000000" // an id that no job has

type checks struct {
	control pb.JobControlClient
	worker  pb.JobWorkerClient
	health  grpc_health_v1.HealthClient
	route   string
	label   string // tells the jobs of this run from all others
	job     *pb.Job
}

func main() {
	address := cmp.Or(os.Getenv("BACKJOB_ADDR"), "127.0.0.1:50051")
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
	defer connection.Close()
	c := &checks{
		control: pb.NewJobControlClient(connection),
		worker:  pb.NewJobWorkerClient(connection),
		health:  grpc_health_v1.NewHealthClient(connection),
		route:   cmp.Or(os.Getenv("ROUTE"), "/reports/build"),
		label:   strconv.FormatInt(time.Now().UnixNano(), 36),
	}
	failures := 0
	for _, check := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"health says SERVING", c.healthy},
		{"Start stores labels and name", c.start},
		{"WatchStatus: present state, synced, rising revisions, SUCCEEDED", c.watch},
		{"WatchStatus with the last revision is only synced", c.watchSeen},
		{"GetStatus, whole and masked", c.status},
		{"a delayed job is SCHEDULED, and CancelJob ends it at once", c.cancel},
		{"CancelJob of a finished job is FAILED_PRECONDITION", c.cancelFinal},
		{"ListJobs goes through the pages, newest first", c.pages},
		{"a bad route is INVALID_ARGUMENT with BadRequest and ErrorInfo", c.badRoute},
		{"an unknown id is NOT_FOUND", c.unknown},
		{"Report without a token is UNAUTHENTICATED", c.noToken},
		{"Report with a bad token is UNAUTHENTICATED", c.badToken},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if err := check.run(ctx); err != nil {
			failures++
			fmt.Printf("FAIL %s: %v\n", check.name, err)
		} else {
			fmt.Println("ok  ", check.name)
		}
		cancel()
	}
	if failures > 0 {
		os.Exit(1)
	}
}

func (c *checks) healthy(ctx context.Context) error {
	for _, service := range []string{"", "backjob.v1.JobControl", "backjob.v1.JobWorker"} {
		answer, err := c.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil {
			return err
		}
		if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			return fmt.Errorf("%q is %v", service, answer.GetStatus())
		}
	}
	return nil
}

func (c *checks) request() *pb.StartRequest {
	return &pb.StartRequest{
		Action:      &pb.Action{Route: c.route},
		Labels:      map[string]string{"check": c.label},
		DisplayName: "a check from Go",
		MergePolicy: pb.MergePolicy_MERGE_POLICY_NEVER,
	}
}

func (c *checks) start(ctx context.Context) error {
	answer, err := c.control.Start(ctx, c.request())
	if err != nil {
		return err
	}
	c.job = answer.GetJob()
	return all(
		expect("label", c.job.GetLabels()["check"], c.label),
		expect("display_name", c.job.GetDisplayName(), "a check from Go"),
		expect("target", c.job.GetAction().GetTarget(), "default"),
		expect("method", c.job.GetAction().GetMethod(), "GET"),
		expect("merged", answer.GetMerged(), false),
		expect("length of the id", len(c.job.GetId()), 36),
	)
}

func (c *checks) watch(ctx context.Context) error {
	stream, err := c.control.WatchStatus(ctx, &pb.WatchStatusRequest{JobIds: []string{c.job.GetId()}})
	if err != nil {
		return err
	}
	var last *pb.Job
	for frames, synced := 0, false; ; frames++ {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if frames == 0 && frame.GetJob() == nil {
			return errors.New("the first frame has no job")
		}
		if frame.GetSynced() {
			if synced {
				return errors.New("synced twice")
			}
			synced = true
		} else if frames > 0 && !synced {
			return errors.New("a change came before synced")
		}
		if frame.GetServerTime() == nil {
			return errors.New("a frame has no server_time")
		}
		if job := frame.GetJob(); job != nil {
			if last != nil && job.GetRevision() <= last.GetRevision() {
				return fmt.Errorf("revision %d came after %d", job.GetRevision(), last.GetRevision())
			}
			last = job
		}
	}
	c.job = last
	return all(
		expect("state", last.GetState(), pb.JobState_JOB_STATE_SUCCEEDED),
		expect("progress", last.GetProgress(), 100),
		expect("attempt", last.GetAttempt(), 1),
		expect("a result", len(last.GetResult().GetData()) > 0, true),
		expect("ended_at", last.GetEndedAt() != nil, true),
	)
}

func (c *checks) watchSeen(ctx context.Context) error {
	revision := c.job.GetRevision()
	stream, err := c.control.WatchStatus(ctx, &pb.WatchStatusRequest{
		JobIds: []string{c.job.GetId()}, AfterRevision: &revision,
	})
	if err != nil {
		return err
	}
	frame, err := stream.Recv()
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream did not end: %v", err)
	}
	return all(expect("synced", frame.GetSynced(), true), expect("a job", frame.GetJob() != nil, false))
}

func (c *checks) status(ctx context.Context) error {
	whole, err := c.control.GetStatus(ctx, &pb.GetStatusRequest{JobId: c.job.GetId()})
	if err != nil {
		return err
	}
	masked, err := c.control.GetStatus(ctx, &pb.GetStatusRequest{
		JobId: c.job.GetId(), ReadMask: &fieldmaskpb.FieldMask{Paths: []string{"state"}},
	})
	if err != nil {
		return err
	}
	return all(
		expect("revision", whole.GetJob().GetRevision(), c.job.GetRevision()),
		expect("result", string(whole.GetJob().GetResult().GetData()), string(c.job.GetResult().GetData())),
		expect("masked state", masked.GetJob().GetState(), pb.JobState_JOB_STATE_SUCCEEDED),
		expect("masked id", masked.GetJob().GetId(), ""),
		refused(c.control.GetStatus(ctx, &pb.GetStatusRequest{
			JobId: c.job.GetId(), ReadMask: &fieldmaskpb.FieldMask{Paths: []string{"nonsense"}},
		}))(codes.InvalidArgument, "INVALID_FIELD", "read_mask"),
	)
}

func (c *checks) cancel(ctx context.Context) error {
	request := c.request()
	request.StartAfter = durationpb.New(time.Hour)
	started, err := c.control.Start(ctx, request)
	if err != nil {
		return err
	}
	job := started.GetJob()
	cancelled, err := c.control.CancelJob(ctx, &pb.CancelJobRequest{JobId: job.GetId()})
	if err != nil {
		return err
	}
	_, again := c.control.CancelJob(ctx, &pb.CancelJobRequest{JobId: job.GetId()})
	return all(
		expect("state", job.GetState(), pb.JobState_JOB_STATE_SCHEDULED),
		expect("delay", job.GetScheduledAt().AsTime().Sub(job.GetCreatedAt().AsTime()), time.Hour),
		expect("state", cancelled.GetJob().GetState(), pb.JobState_JOB_STATE_CANCELLED),
		expect("attempt", cancelled.GetJob().GetAttempt(), 0),
		again,
	)
}

func (c *checks) cancelFinal(ctx context.Context) error {
	return refused(c.control.CancelJob(ctx, &pb.CancelJobRequest{JobId: c.job.GetId()}))(
		codes.FailedPrecondition, "JOB_FINAL", "")
}

func (c *checks) pages(ctx context.Context) error {
	for range 3 {
		request := c.request()
		request.StartAfter = durationpb.New(time.Hour)
		if _, err := c.control.Start(ctx, request); err != nil {
			return err
		}
	}
	request := &pb.ListJobsRequest{
		PageSize: 2, Filter: &pb.JobFilter{Labels: map[string]string{"check": c.label}},
	}
	seen, last := make(map[string]bool), (*pb.Job)(nil)
	for {
		page, err := c.control.ListJobs(ctx, request)
		if err != nil {
			return err
		}
		for _, job := range page.GetJobs() {
			if seen[job.GetId()] {
				return fmt.Errorf("%s came twice", job.GetId())
			}
			if last != nil && job.GetCreatedAt().AsTime().After(last.GetCreatedAt().AsTime()) {
				return errors.New("a newer job came after an older one")
			}
			if job.GetResult() != nil {
				return errors.New("the list holds a result")
			}
			seen[job.GetId()], last = true, job
		}
		if len(page.GetJobs()) > 2 {
			return fmt.Errorf("%d jobs on a page of 2", len(page.GetJobs()))
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			break
		}
	}
	return all(
		expect("jobs", len(seen), 5), // one run, one cancelled, three delayed,
		expect("the finished job is among them", seen[c.job.GetId()], true),
	)
}

func (c *checks) badRoute(ctx context.Context) error {
	request := c.request()
	request.Action.Route = "no/slash"
	return refused(c.control.Start(ctx, request))(codes.InvalidArgument, "INVALID_FIELD", "action.route")
}

func (c *checks) unknown(ctx context.Context) error {
	stream, err := c.control.WatchStatus(ctx, &pb.WatchStatusRequest{JobIds: []string{nobody}})
	if err != nil {
		return err
	}
	return all(
		refused(c.control.GetStatus(ctx, &pb.GetStatusRequest{JobId: nobody}))(codes.NotFound, "JOB_NOT_FOUND", ""),
		refused(c.control.CancelJob(ctx, &pb.CancelJobRequest{JobId: nobody}))(codes.NotFound, "JOB_NOT_FOUND", ""),
		refused(stream.Recv())(codes.NotFound, "JOB_NOT_FOUND", ""),
		refused(c.control.GetStatus(ctx, &pb.GetStatusRequest{JobId: "x"}))(
			codes.InvalidArgument, "INVALID_FIELD", "job_id"),
	)
}

func (c *checks) noToken(ctx context.Context) error {
	return refused(c.worker.Report(ctx, &pb.ReportRequest{}))(codes.Unauthenticated, "TOKEN_MISSING", "")
}

func (c *checks) badToken(ctx context.Context) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer nonsense")
	stream, err := c.worker.ReportStream(ctx)
	if err != nil {
		return err
	}
	return all(
		refused(c.worker.Report(ctx, &pb.ReportRequest{}))(codes.Unauthenticated, "TOKEN_INVALID", ""),
		refused(stream.Recv())(codes.Unauthenticated, "TOKEN_INVALID", ""),
	)
}

// refused takes what a call returned, and tells how it differs from an error
// with this code, ErrorInfo reason and, unless empty, violated field.
func refused[T any](_ T, err error) func(code codes.Code, reason, field string) error {
	return func(code codes.Code, reason, field string) error {
		answer, _ := status.FromError(err)
		var info *errdetails.ErrorInfo
		fields := []string{}
		for _, detail := range answer.Details() {
			switch detail := detail.(type) {
			case *errdetails.ErrorInfo:
				info = detail
			case *errdetails.BadRequest:
				for _, violation := range detail.GetFieldViolations() {
					fields = append(fields, violation.GetField())
				}
			}
		}
		violated := []string{}
		if field != "" {
			violated = append(violated, field)
		}
		return all(
			expect("code", answer.Code(), code),
			expect("reason", info.GetReason(), reason),
			expect("domain", info.GetDomain(), "backjob.v1"),
			expect("fields", fmt.Sprint(fields), fmt.Sprint(violated)),
		)
	}
}

func expect[T comparable](what string, is, should T) error {
	if is == should {
		return nil
	}
	return fmt.Errorf("%s is %v, not %v", what, is, should)
}

func all(errs ...error) error {
	return errors.Join(errs...)
}

package main

import (
	"context"
	"errors"
	"io"
	"net/url"
	"sync"
	"time"

	pb "backjob.example/go/backjobv1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// A server that does not come back for so long has given the job up.
const patience = 5 * time.Minute

// reporter sends the reports of one attempt over a ReportStream. Should the
// server restart, it comes back and repeats what was not acknowledged; the
// sequence numbers keep a report from being applied twice.
type reporter struct {
	client pb.JobWorkerClient
	ctx    context.Context
	stop   context.CancelFunc // told by a STOP, or once nobody wants reports any more
	done   chan error         // gets one value, when the stream has ended for good
	more   chan struct{}      // wakes the sender

	mu       sync.Mutex
	sequence uint64
	pending  []*pb.ReportRequest // sent or not, but not acknowledged
	heard    time.Time
}

// newReporter reports to the server at address with the token of the attempt.
// It calls stop when the work should end early.
func newReporter(address, token string, stop context.CancelFunc) (*reporter, error) {
	at, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	security := insecure.NewCredentials()
	if at.Scheme == "https" {
		security = credentials.NewTLS(nil)
	}
	connection, err := grpc.NewClient(at.Host, grpc.WithTransportCredentials(security))
	if err != nil {
		return nil, err
	}
	r := &reporter{
		client: pb.NewJobWorkerClient(connection),
		ctx:    metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token),
		stop:   stop,
		done:   make(chan error, 1),
		more:   make(chan struct{}, 1),
		heard:  time.Now(),
	}
	go func() {
		defer connection.Close()
		err := r.run()
		r.stop()
		r.done <- err
	}()
	return r, nil
}

// send queues a report and returns at once.
func (r *reporter) send(report *pb.ReportRequest) {
	r.mu.Lock()
	r.sequence++
	report.Sequence = proto.Uint64(r.sequence)
	r.pending = append(r.pending, report)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// end sends the report that ends the attempt and waits until it is durable.
func (r *reporter) end(report *pb.ReportRequest) error {
	r.send(report)
	return <-r.done
}

func (r *reporter) run() error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := r.stream()
		// Any other code is the server's last word: the job has ended, say.
		if status.Code(err) != codes.Unavailable || r.silence() > patience {
			return err
		}
		time.Sleep(wait)
	}
}

// stream lives as long as one ReportStream.
func (r *reporter) stream() error {
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	stream, err := r.client.ReportStream(ctx)
	if err != nil {
		return err
	}
	go func() {
		for sent := uint64(0); ; {
			report := r.after(sent)
			if report == nil {
				select {
				case <-r.more:
					continue
				case <-ctx.Done():
					return
				}
			}
			if stream.Send(report) != nil {
				return // Recv tells why
			}
			sent = report.GetSequence()
		}
	}()
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r.acknowledge(answer.GetAckedSequence())
		if answer.GetDirective() == pb.Directive_DIRECTIVE_STOP {
			r.stop()
		}
	}
}

// after is the first pending report behind the one with this sequence.
func (r *reporter) after(sequence uint64) *pb.ReportRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, report := range r.pending {
		if report.GetSequence() > sequence {
			return report
		}
	}
	return nil
}

func (r *reporter) acknowledge(sequence uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = time.Now()
	for len(r.pending) > 0 && r.pending[0].GetSequence() <= sequence {
		r.pending = r.pending[1:]
	}
}

func (r *reporter) silence() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.heard)
}

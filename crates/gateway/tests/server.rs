//! The gateway on a loopback port, with a worker that records what it is asked and the generated client.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod recorder;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_contracts::v1;
use holdfast_contracts::v1::completion_service_client::CompletionServiceClient;
use holdfast_contracts::v1::model_service_client::ModelServiceClient;
use holdfast_contracts::v1::runtime_service_client::RuntimeServiceClient;
use holdfast_contracts::v1::session_service_client::SessionServiceClient;
use holdfast_contracts::v1::token_service_client::TokenServiceClient;
use holdfast_gateway::{Gateway, GatewayError, GatewaySettings};
use holdfast_types::{EventKind, Failure, FailureDetail, ItemNumber, Limits, Reason, TokenRange};
use recorder::{Asked, Recorder, event, turn};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const SERVICES: [&str; 5] = [
    "holdfast.v1.SessionService",
    "holdfast.v1.CompletionService",
    "holdfast.v1.ModelService",
    "holdfast.v1.TokenService",
    "holdfast.v1.RuntimeService",
];
const SESSION: &str = "sessions/session-1";
const SOON: Duration = Duration::from_secs(20);

struct Running {
    address: String,
    worker: Arc<Recorder>,
    channel: Channel,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), GatewayError>>,
}

impl Running {
    async fn start(settings: GatewaySettings) -> Self {
        let worker = Arc::new(Recorder::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let gateway = Gateway::new(worker.clone(), settings);
        let served = tokio::spawn(gateway.serve(listener, async move { drop(stopped.await) }));
        let channel = Channel::from_shared(address.clone()).unwrap().connect().await.unwrap();
        Self { address, worker, channel, stop: Some(stop), served }
    }

    async fn default() -> Self {
        Self::start(GatewaySettings::default()).await
    }

    fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    async fn another_connection(&self) -> Channel {
        Channel::from_shared(self.address.clone()).unwrap().connect().await.unwrap()
    }

    /// Asks for shutdown.
    fn stop(&mut self) {
        drop(self.stop.take());
    }

    async fn served(self) {
        drop(self.channel);
        timeout(SOON, self.served).await.expect("the gateway ends").unwrap().unwrap();
    }
}

fn message(text: &str) -> v1::Item {
    let content = vec![v1::ContentPart { part: Some(v1::content_part::Part::Text(text.into())) }];
    let message = v1::Message { role: v1::Role::User as i32, content };
    v1::Item { kind: Some(v1::item::Kind::Message(message)), ..v1::Item::default() }
}

fn run(text: &str) -> v1::RunTurnRequest {
    v1::RunTurnRequest { session: SESSION.into(), input: vec![message(text)], ..v1::RunTurnRequest::default() }
}

fn delta(text: &str) -> EventKind {
    EventKind::TextDelta {
        item: ItemNumber(2),
        text: text.into(),
        tokens: TokenRange { start: 1, end: 2 },
        logprobs: vec![],
    }
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "holdfast");
    info.reason
}

async fn until(condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, poll).await.expect("the condition holds soon");
}

#[tokio::test]
async fn calls_reach_the_worker_parsed_and_with_their_caller() {
    let gateway = Running::default().await;
    let mut sessions = gateway.sessions();
    let mut create = Request::new(v1::CreateSessionRequest {
        session_id: "session-1".into(),
        initial_items: vec![message("hi")],
        request_id: "r1".into(),
        ..v1::CreateSessionRequest::default()
    });
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    create.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    let made = sessions.create_session(create).await.unwrap().into_inner();
    assert_eq!((made.name.as_str(), made.config.unwrap().model.as_str()), (SESSION, "models/pebble"));
    let asked = gateway.worker.asked();
    let Asked::Create(caller, request) = &asked[0] else { panic!("{asked:?}") };
    assert_eq!((caller.tenant.as_str(), caller.principal.as_str()), ("default", "anonymous"));
    assert_eq!(caller.traceparent, traceparent);
    assert_eq!((request.items.len(), request.request_id.as_deref()), (1, Some("r1")));

    let name = || SESSION.to_owned();
    let turn_name = || format!("{SESSION}/turns/3");
    sessions.get_session(v1::GetSessionRequest { name: name() }).await.unwrap();
    let filter = "state = IDLE AND labels.k = \"v\"".to_owned();
    let page = |page_token| v1::ListSessionsRequest { filter: filter.clone(), page_token, page_size: 2 };
    let listed = sessions.list_sessions(page(String::new())).await.unwrap().into_inner();
    assert_eq!(listed.sessions.len(), 1);
    let foreign = sessions.list_sessions(page("more".into())).await.unwrap_err();
    assert_eq!(reason(&foreign), "INVALID_PAGE_TOKEN", "the worker's token without the seal of its list");
    sessions.list_sessions(page(listed.next_page_token)).await.unwrap();
    sessions.delete_session(v1::DeleteSessionRequest { name: name(), etag: "e1".into() }).await.unwrap();
    sessions
        .create_turn(v1::CreateTurnRequest {
            session: name(),
            input: vec![message("x")],
            ..v1::CreateTurnRequest::default()
        })
        .await
        .unwrap();
    let cancelled = sessions.cancel_turn(v1::CancelTurnRequest { name: turn_name() }).await.unwrap().into_inner();
    assert_eq!(cancelled.name, "sessions/session-1/turns/1");
    sessions.get_turn(v1::GetTurnRequest { name: turn_name(), ..v1::GetTurnRequest::default() }).await.unwrap();
    let turns = v1::ListTurnsRequest { session: name(), ..v1::ListTurnsRequest::default() };
    assert_eq!(sessions.list_turns(turns).await.unwrap().into_inner().turns.len(), 2);
    let append = v1::AppendItemsRequest {
        session: name(),
        items: vec![message("x")],
        prefill: true,
        ..v1::AppendItemsRequest::default()
    };
    sessions.append_items(append).await.unwrap();
    let asked = gateway.worker.asked();
    let asked: Vec<_> =
        asked.iter().filter(|asked| !matches!(asked, Asked::List(first) if first.page_token.is_empty())).collect();
    let Asked::List(list) = &asked[2] else { panic!("{asked:?}") };
    assert_eq!((list.page_size, list.page_token.as_str(), list.states.len(), list.labels.len()), (2, "more", 1, 1));
    assert!(matches!(&asked[3], Asked::Delete(_, Some(etag)) if etag == "e1"));
    assert!(matches!(&asked[4], Asked::Start(start) if start.input.len() == 1));
    assert!(matches!(&asked[5], Asked::Cancel(cancel) if cancel.turn.unwrap().0 == 3));
    assert!(matches!(&asked[8], Asked::Append(append) if append.prefill));
}

#[tokio::test]
async fn models_tokens_completions_and_the_runtime_answer() {
    let gateway = Running::default().await;
    let mut models = ModelServiceClient::new(gateway.channel.clone());
    let first = v1::ListModelsRequest { page_size: 2, ..v1::ListModelsRequest::default() };
    let first = models.list_models(first).await.unwrap().into_inner();
    assert_eq!(first.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["models/pebble", "models/other"]);
    assert_eq!(first.models.iter().filter(|m| m.is_default).count(), 1);
    let rest = v1::ListModelsRequest { page_size: 2, page_token: first.next_page_token };
    let rest = models.list_models(rest).await.unwrap().into_inner();
    assert_eq!((rest.models[0].name.as_str(), rest.next_page_token.as_str()), ("models/third", ""));
    let foreign = v1::ListModelsRequest { page_token: "nonsense".into(), ..v1::ListModelsRequest::default() };
    assert_eq!(reason(&models.list_models(foreign).await.unwrap_err()), "INVALID_PAGE_TOKEN");
    assert_eq!(
        models.get_model(v1::GetModelRequest { name: "models/third".into() }).await.unwrap().into_inner().vocab_size,
        10
    );
    let unknown = models.get_model(v1::GetModelRequest { name: "models/none".into() }).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "MODEL_NOT_FOUND"));
    assert_eq!(unknown.get_details_resource_info().unwrap().resource_name, "models/none");

    let mut tokens = TokenServiceClient::new(gateway.channel.clone());
    assert_eq!(tokens.count_tokens(v1::CountTokensRequest::default()).await.unwrap().into_inner().tokens, 3);

    let mut completions = CompletionServiceClient::new(gateway.channel.clone());
    let request = v1::GenerateRequest { items: vec![message("hi")], ..v1::GenerateRequest::default() };
    let mut stream = completions.generate(request).await.unwrap().into_inner();
    let ended = stream.message().await.unwrap().unwrap();
    assert_eq!((ended.sequence, ended.session.as_str()), (1, ""));
    assert!(stream.message().await.unwrap().is_none());
    let empty = completions.generate(v1::GenerateRequest::default()).await.unwrap_err();
    assert_eq!(reason(&empty), "EMPTY_TURN");

    let mut runtime = RuntimeServiceClient::new(gateway.channel.clone());
    let runtime = runtime.get_runtime(v1::GetRuntimeRequest {}).await.unwrap().into_inner();
    assert_eq!(runtime.limits.len(), Limits::default().entries().len());
    assert_eq!((runtime.numerics_classes.len(), runtime.models.len(), runtime.draining), (1, 3, false));
}

#[tokio::test]
async fn events_stream_in_order_and_an_error_in_the_middle_is_the_status() {
    let gateway = Running::default().await;
    let feed = gateway.worker.feed();
    let mut stream = gateway.sessions().run_turn(run("hi")).await.unwrap().into_inner();
    feed.send(Ok(event(1, EventKind::TurnStarted { turn: Box::new(turn(1)) }))).unwrap();
    feed.send(Ok(event(2, delta("a")))).unwrap();
    feed.send(Err(Failure::new(Reason::DeviceLost, "the device went away"))).unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().sequence, 1);
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!((second.sequence, second.turn.as_str()), (2, "sessions/session-1/turns/1"));
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "DEVICE_LOST"));
    assert!(status.get_details_retry_info().is_some());
    assert!(gateway.worker.stream_dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_stream_ends_with_its_events() {
    let gateway = Running::default().await;
    let feed = gateway.worker.feed();
    let attach = v1::AttachTurnRequest { name: format!("{SESSION}/turns/1"), from_sequence: 9 };
    let mut stream = gateway.sessions().attach_turn(attach).await.unwrap().into_inner();
    feed.send(Ok(event(9, EventKind::TurnEnded { turn: Box::new(turn(1)) }))).unwrap();
    drop(feed);
    assert_eq!(stream.message().await.unwrap().unwrap().sequence, 9);
    assert!(stream.message().await.unwrap().is_none());
    assert!(matches!(&gateway.worker.asked()[0], Asked::Attach(_, turn, 9) if turn.0 == 1));
}

#[tokio::test]
async fn a_client_that_goes_away_drops_the_worker_s_stream() {
    let gateway = Running::default().await;
    let stream = gateway.sessions().run_turn(run("hi")).await.unwrap();
    assert!(!gateway.worker.stream_dropped.load(Ordering::SeqCst));
    drop(stream);
    until(|| gateway.worker.stream_dropped.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn the_call_s_deadline_ends_the_stream() {
    let gateway = Running::default().await;
    // Set by hand, so that the client does not end the stream by itself.
    let mut request = Request::new(run("hi"));
    request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let mut stream = gateway.sessions().run_turn(request).await.unwrap().into_inner();
    let status = timeout(SOON, stream.message()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(gateway.worker.stream_dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn the_worker_s_failures_arrive_with_their_details() {
    let gateway = Running::default().await;
    let failure = Failure::resource(Reason::SessionNotFound, SESSION, "there is no session-1")
        .with(FailureDetail::Metadata { key: "hint".into(), value: "create it".into() });
    gateway.worker.fail_with(failure);
    let status = gateway.sessions().get_session(v1::GetSessionRequest { name: SESSION.into() }).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "SESSION_NOT_FOUND"));
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, SESSION);
    assert_eq!(status.get_details_error_info().unwrap().metadata["hint"], "create it");
    let status = gateway.sessions().run_turn(run("hi")).await.unwrap_err();
    assert_eq!(reason(&status), "SESSION_NOT_FOUND");
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    let gateway = Running::default().await;
    let mut sessions = gateway.sessions();
    let fork = sessions.fork_session(v1::ForkSessionRequest::default()).await.unwrap_err();
    let suspend = sessions.suspend_session(v1::SuspendSessionRequest::default()).await.unwrap_err();
    for (status, name) in [(fork, "ForkSession"), (suspend, "SuspendSession")] {
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "METHOD_NOT_IMPLEMENTED"));
        assert_eq!(status.get_details_error_info().unwrap().metadata["method"], name);
    }
    assert!(gateway.worker.asked().is_empty());
}

#[tokio::test]
async fn messages_beyond_request_bytes_are_refused_with_the_limit_s_name() {
    let limits = Limits { request_bytes: 4_096, ..Limits::default() };
    let gateway = Running::start(GatewaySettings { limits, ..GatewaySettings::default() }).await;
    let status = gateway.sessions().run_turn(run(&"x".repeat(5_000))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    let info = status.get_details_error_info().unwrap();
    assert_eq!((info.metadata["limitName"].as_str(), info.metadata["limit"].as_str()), ("request_bytes", "4096"));
    let large = v1::GetSessionRequest { name: "x".repeat(5_000) };
    assert_eq!(reason(&gateway.sessions().get_session(large).await.unwrap_err()), "MESSAGE_TOO_LARGE");
    assert!(gateway.worker.asked().is_empty());
}

#[tokio::test]
async fn pages_are_cut_by_bytes_and_lose_nothing() {
    let limits = Limits { reply_bytes: 4_096, ..Limits::default() };
    let gateway = Running::start(GatewaySettings { limits, ..GatewaySettings::default() }).await;
    *gateway.worker.item_bytes.lock().unwrap() = 900;
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let request =
            v1::ListItemsRequest { session: SESSION.into(), page_token: token, ..v1::ListItemsRequest::default() };
        let page = gateway.sessions().list_items(request).await.unwrap().into_inner();
        assert!(page.items.len() <= 4);
        names.extend(page.items.into_iter().map(|item| item.name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, (1..=10).map(|n| format!("{SESSION}/items/{n}")).collect::<Vec<_>>());
    *gateway.worker.item_bytes.lock().unwrap() = 5_000;
    let request = v1::ListItemsRequest { session: SESSION.into(), ..v1::ListItemsRequest::default() };
    assert_eq!(reason(&gateway.sessions().list_items(request).await.unwrap_err()), "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn work_whose_answer_would_not_fit_is_refused_before_it_is_done() {
    let limits = Limits { reply_bytes: 32 * 1024, ..Limits::default() };
    let gateway = Running::start(GatewaySettings { limits, ..GatewaySettings::default() }).await;
    let append = v1::AppendItemsRequest {
        session: SESSION.into(),
        items: vec![message(&"x".repeat(32 * 1024))],
        ..v1::AppendItemsRequest::default()
    };
    assert_eq!(reason(&gateway.sessions().append_items(append).await.unwrap_err()), "MESSAGE_TOO_LARGE");
    let config = v1::SessionConfig { instructions: "x".repeat(20 * 1024), ..v1::SessionConfig::default() };
    let session = v1::Session { config: Some(config), ..v1::Session::default() };
    let create = v1::CreateSessionRequest { session: Some(session), ..v1::CreateSessionRequest::default() };
    assert_eq!(reason(&gateway.sessions().create_session(create).await.unwrap_err()), "MESSAGE_TOO_LARGE");
    assert!(gateway.worker.asked().is_empty());
}

#[tokio::test]
async fn open_streams_are_bounded_over_all_connections_and_their_places_come_back() {
    let limits = Limits { open_streams: 2, ..Limits::default() };
    let gateway = Running::start(GatewaySettings { limits, ..GatewaySettings::default() }).await;
    let first = gateway.sessions().run_turn(run("1")).await.unwrap();
    let _second = gateway.sessions().run_turn(run("2")).await.unwrap();
    let other = gateway.another_connection().await;
    let status = SessionServiceClient::new(other.clone()).run_turn(run("3")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "LIMIT_EXCEEDED"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["limitName"], "open_streams");
    drop(first);
    until(|| gateway.worker.stream_dropped.load(Ordering::SeqCst)).await;
    let _third = SessionServiceClient::new(other).run_turn(run("3")).await.unwrap();
}

#[tokio::test]
async fn unknown_methods_and_broken_messages_are_told_apart() {
    let gateway = Running::default().await;
    let mut grpc = tonic::client::Grpc::new(gateway.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetSessionRequest, v1::Session>::default();
    let path = "/holdfast.v1.SessionService/NoSuchMethod".parse().unwrap();
    let request = Request::new(v1::GetSessionRequest::default());
    let unknown = grpc.unary(request, path, codec).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::Unimplemented, "METHOD_NOT_IMPLEMENTED"));
    // A Duration's bytes where a string is expected.
    let codec = tonic_prost::ProstCodec::<prost_types::Duration, v1::Session>::default();
    grpc.ready().await.unwrap();
    let path = "/holdfast.v1.SessionService/GetSession".parse().unwrap();
    let broken =
        grpc.unary(Request::new(prost_types::Duration { seconds: 1, nanos: 1 }), path, codec).await.unwrap_err();
    assert_eq!((broken.code(), reason(&broken).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
}

#[tokio::test]
async fn health_answers_for_every_service() {
    let gateway = Running::default().await;
    let mut health = HealthClient::new(gateway.channel.clone());
    for service in SERVICES.into_iter().chain([""]) {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = health.check(HealthCheckRequest { service: "none".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_every_service_in_both_versions() {
    let gateway = Running::default().await;
    macro_rules! listed {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            let message_request = Some(MessageRequest::ListServices(String::new()));
            let request = ServerReflectionRequest { message_request, ..ServerReflectionRequest::default() };
            let mut client = ServerReflectionClient::new(gateway.channel.clone());
            let mut stream = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
            match stream.message().await.unwrap().unwrap().message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            }
        }};
    }
    for names in [listed!(v1), listed!(v1alpha)] {
        for service in SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
            assert!(names.iter().any(|name| name == service), "{service} in {names:?}");
        }
    }
}

#[tokio::test]
async fn shutdown_drains() {
    let mut gateway = Running::default().await;
    let feed = gateway.worker.feed();
    let mut of_turn = gateway.sessions().run_turn(run("hi")).await.unwrap().into_inner();
    let watch = v1::WatchSessionRequest { name: SESSION.into(), from_sequence: 0 };
    let mut endless = gateway.sessions().watch_session(watch).await.unwrap().into_inner();
    let mut health = HealthClient::new(gateway.channel.clone());
    let request = HealthCheckRequest { service: String::new() };
    let mut watched = health.watch(request.clone()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    gateway.stop();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    let status = timeout(SOON, endless.message()).await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "RUNTIME_DRAINING"));
    assert_eq!(reason(&gateway.sessions().run_turn(run("new")).await.unwrap_err()), "RUNTIME_DRAINING");
    let mut runtime = RuntimeServiceClient::new(gateway.channel.clone());
    assert!(runtime.get_runtime(v1::GetRuntimeRequest {}).await.unwrap().into_inner().draining);

    // The turn's stream may still end by itself.
    feed.send(Ok(event(1, EventKind::TurnEnded { turn: Box::new(turn(1)) }))).unwrap();
    drop(feed);
    assert_eq!(of_turn.message().await.unwrap().unwrap().sequence, 1);
    assert!(of_turn.message().await.unwrap().is_none());
    gateway.served().await;
}

#[tokio::test]
async fn a_turn_that_does_not_end_is_cut_after_the_drain_timeout() {
    let settings = GatewaySettings { drain_timeout: Duration::from_millis(100), ..GatewaySettings::default() };
    let mut gateway = Running::start(settings).await;
    let mut stream = gateway.sessions().run_turn(run("hi")).await.unwrap().into_inner();
    gateway.stop();
    let status = timeout(SOON, stream.message()).await.unwrap().unwrap_err();
    assert_eq!(reason(&status), "RUNTIME_DRAINING");
    gateway.served().await;
}

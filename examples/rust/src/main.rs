//! Asks a server everything that a client usually wants, and prints the answers as JSON: cargo run TARGET IMAGE...

use std::{env, error::Error, fs, path::Path, process::ExitCode, time::Duration};

use serde_json::{Map, Value, json};
use tonic::{
    Request, Status, TimeoutExpired,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::{RpcStatusExt, StatusExt};

use cbir::{
    Query, SearchOptions, SearchRequest, SearchStreamRequest, query::Source,
    search_service_client::SearchServiceClient, search_stream_response::Outcome,
};

mod cbir {
    tonic::include_proto!("cbir.v1");
}

const HITS: u32 = 5;
const TIMEOUT: Duration = Duration::from_secs(30);

type Client = SearchServiceClient<InterceptedService<Channel, Authorized>>;
type Answer = Result<Value, Box<dyn Error>>;

/// Adds the token of the environment to every call.
#[derive(Clone)]
struct Authorized(Option<MetadataValue<Ascii>>);

impl Authorized {
    fn from_environment() -> Result<Self, Box<dyn Error>> {
        let token = env::var("CBIR_TOKEN").ok();
        Ok(Self(
            token
                .map(|token| format!("Bearer {token}").parse())
                .transpose()?,
        ))
    }
}

impl Interceptor for Authorized {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Plain HTTP/2, or TLS if the environment names the authority of the server's certificate.
async fn connect(target: &str) -> Result<Channel, Box<dyn Error>> {
    let endpoint = match env::var("CBIR_TLS_CA") {
        Ok(authority) => secure(target, &authority)?,
        Err(_) => Endpoint::from_shared(format!("http://{target}"))?,
    };
    Ok(endpoint.timeout(TIMEOUT).connect().await?)
}

#[cfg(feature = "tls")]
fn secure(target: &str, authority: &str) -> Result<Endpoint, Box<dyn Error>> {
    use tonic::transport::{Certificate, ClientTlsConfig};
    let trust = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(authority)?));
    Ok(Endpoint::from_shared(format!("https://{target}"))?.tls_config(trust)?)
}

#[cfg(not(feature = "tls"))]
fn secure(_: &str, _: &str) -> Result<Endpoint, Box<dyn Error>> {
    Err("built without TLS: cargo build --features tls".into())
}

fn image_query(path: &str) -> Result<SearchRequest, std::io::Error> {
    Ok(SearchRequest {
        query: Some(Query {
            source: Some(Source::Image(fs::read(path)?)),
            ..Default::default()
        }),
        options: Some(SearchOptions {
            limit: HITS,
            ..Default::default()
        }),
    })
}

fn name(path: &str) -> String {
    Path::new(path)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

async fn search_one(client: &mut Client, path: &str) -> Answer {
    let answer = client.search(image_query(path)?).await?.into_inner();
    let hits: Vec<_> = answer
        .hits
        .iter()
        .map(|hit| json!({"image_id": hit.image_id, "label": hit.label, "score": f64::from(hit.score)}))
        .collect();
    Ok(json!({"query": name(path), "hits": hits}))
}

/// Sends all images over one call. Answers come in the order in which they are ready.
async fn search_many(client: &mut Client, paths: &[String]) -> Answer {
    let queries = paths
        .iter()
        .map(|path| {
            Ok(SearchStreamRequest {
                request_id: name(path),
                request: Some(image_query(path)?),
            })
        })
        .collect::<Result<Vec<_>, std::io::Error>>()?;
    let mut stream = client
        .search_stream(tokio_stream::iter(queries))
        .await?
        .into_inner();
    let mut answers = Map::new();
    while let Some(answer) = stream.message().await? {
        let outcome = match answer.outcome {
            Some(Outcome::Response(response)) => {
                json!({"hits": response.hits.into_iter().map(|hit| hit.image_id).collect::<Vec<_>>()})
            }
            Some(Outcome::Error(status)) => {
                json!({"reason": status.get_details_error_info().map_or(String::new(), |info| info.reason)})
            }
            None => Value::Null,
        };
        answers.insert(answer.request_id, outcome);
    }
    Ok(Value::Object(answers))
}

/// Asks for the likes of an image that no gallery has.
async fn provoke_error(client: &mut Client) -> Value {
    let query = Query {
        source: Some(Source::ImageId("no-such-image".into())),
        ..Default::default()
    };
    match client
        .search(SearchRequest {
            query: Some(query),
            options: None,
        })
        .await
    {
        Ok(_) => json!({"code": "OK", "reason": ""}),
        Err(status) => {
            let reason = status
                .get_details_error_info()
                .map_or(String::new(), |info| info.reason);
            json!({"code": code_name(&status), "reason": reason})
        }
    }
}

/// Opens a stream and sends nothing until its time is up.
async fn pass_deadline(client: &mut Client) -> Value {
    let mut request = Request::new(tokio_stream::pending());
    // The server is told, too, and ends the call should tonic not do so first.
    request.set_timeout(Duration::from_millis(200));
    let call = async {
        client
            .search_stream(request)
            .await?
            .into_inner()
            .message()
            .await
    };
    match call.await {
        Ok(_) => json!({"code": "OK"}),
        // tonic calls a call whose time is up cancelled; the other languages call it what gRPC does.
        Err(status) if status.message() == TimeoutExpired(()).to_string() => {
            json!({"code": "DEADLINE_EXCEEDED"})
        }
        Err(status) => json!({"code": code_name(&status)}),
    }
}

/// The name of a code as gRPC writes it: NOT_FOUND, where Rust has NotFound.
fn code_name(status: &Status) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", status.code()).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

async fn ask(target: &str, paths: &[String]) -> Answer {
    let channel = connect(target).await?;
    let authorized = Authorized::from_environment()?;
    let mut health = HealthClient::with_interceptor(channel.clone(), authorized.clone());
    let status = health
        .check(HealthCheckRequest::default())
        .await?
        .into_inner()
        .status();
    let mut client = SearchServiceClient::with_interceptor(channel, authorized);
    Ok(json!({
        "health": status.as_str_name(),
        "search": search_one(&mut client, &paths[0]).await?,
        "stream": search_many(&mut client, paths).await?,
        "error": provoke_error(&mut client).await,
        "deadline": pass_deadline(&mut client).await,
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [target, paths @ ..] = arguments.as_slice() else {
        return usage();
    };
    if paths.is_empty() {
        return usage();
    }
    match ask(target, paths).await {
        Ok(document) => {
            println!("{document:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: cargo run TARGET IMAGE...");
    ExitCode::from(2)
}

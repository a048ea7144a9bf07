//! A client and a server of ours, and a pump between them.

use trunkline::tls::{ClientSettings, ServerSettings, Session};

use crate::tls_support::{NAME, Said, feed};

/// Two sessions of ours and the bytes between them.
pub struct Pair {
    pub client: Session,
    pub server: Session,
    pub to_server: Vec<u8>,
    pub to_client: Vec<u8>,
    pub client_said: Said,
    pub server_said: Said,
}

impl Pair {
    pub fn new(client: &ClientSettings, server: &ServerSettings) -> Pair {
        let mut to_server = Vec::new();
        let client = Session::client(client, NAME, None, &mut to_server).unwrap();
        let server = Session::server(server);
        let (client_said, server_said) = (Said::default(), Said::default());
        Pair { client, server, to_server, to_client: Vec::new(), client_said, server_said }
    }

    /// Carries bytes until none are on the way.
    pub fn run(&mut self) {
        while !self.to_server.is_empty() || !self.to_client.is_empty() {
            self.server_said.merge(feed(&mut self.server, &mut self.to_server, &mut self.to_client));
            if self.server_said.error.is_some() {
                self.to_server.clear();
            }
            self.client_said.merge(feed(&mut self.client, &mut self.to_client, &mut self.to_server));
            if self.client_said.error.is_some() {
                self.to_client.clear();
            }
        }
    }
}

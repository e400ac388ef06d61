// A TLS echo server on Node's tls module. Options come as one JSON argument, see tests/support/servers.py.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const tls = require('node:tls');

const options = JSON.parse(process.argv[2]);

const server = tls.createServer({
  cert: fs.readFileSync(options.certificate),
  key: fs.readFileSync(options.key),
  ca: fs.readFileSync(options.trust),
  requestCert: true,
  rejectUnauthorized: true,
  minVersion: `TLSv${options.minimum}`,
  maxVersion: `TLSv${options.maximum}`,
  ecdhCurve: options.groups.length ? options.groups.join(':') : 'auto',
  ALPNProtocols: options.alpn.length ? options.alpn : undefined,
  // Node resumes only sessions of the same context.
  sessionIdContext: 'vmtoken',
  secureOptions: options.tickets ? 0 : crypto.constants.SSL_OP_NO_TICKET,
  allowHalfOpen: true,
});

// What the server saw, sent to the client as the first line.
function seen(socket) {
  return {
    version: socket.getProtocol(),
    alpn: socket.alpnProtocol || '',
    server_name: socket.servername || '',
    resumed: socket.isSessionReused(),
    client: socket.getPeerCertificate().subject.CN,
  };
}

server.on('secureConnection', (socket) => {
  socket.on('error', (error) => console.error('echo failed:', error.message));
  socket.write(JSON.stringify(seen(socket)) + '\n');
  socket.pipe(socket);
});
server.on('tlsClientError', (error) => console.error('handshake failed:', error.message));
if (options.keylog) {
  server.on('keylog', (line) => fs.appendFileSync(options.keylog, line, { mode: 0o600 }));
}
server.listen(0, '127.0.0.1', () => console.log(`READY ${server.address().port}`));

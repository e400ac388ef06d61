// A TLS echo server on Go's crypto/tls. Options come as one JSON argument, see tests/support/servers.py.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

type options struct {
	Certificate string   `json:"certificate"`
	Key         string   `json:"key"`
	Trust       string   `json:"trust"`
	Minimum     string   `json:"minimum"`
	Maximum     string   `json:"maximum"`
	Groups      []string `json:"groups"`
	Alpn        []string `json:"alpn"`
	Tickets     bool     `json:"tickets"`
	Keylog      string   `json:"keylog"`
}

// What the server saw, sent to the client as the first line.
type report struct {
	Version    string `json:"version"`
	Alpn       string `json:"alpn"`
	ServerName string `json:"server_name"`
	Resumed    bool   `json:"resumed"`
	Client     string `json:"client"`
}

var versions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

var groups = map[string]tls.CurveID{
	"X25519MLKEM768": tls.X25519MLKEM768,
	"X25519":         tls.X25519,
	"secp256r1":      tls.CurveP256,
	"secp384r1":      tls.CurveP384,
}

func main() {
	var chosen options
	if err := json.Unmarshal([]byte(os.Args[1]), &chosen); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	config := serverConfig(chosen)
	fmt.Printf("READY %d\n", listener.Addr().(*net.TCPAddr).Port)
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(tls.Server(connection, config))
	}
}

func serverConfig(chosen options) *tls.Config {
	identity, err := tls.LoadX509KeyPair(chosen.Certificate, chosen.Key)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{
		Certificates:           []tls.Certificate{identity},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              x509.NewCertPool(),
		MinVersion:             versions[chosen.Minimum],
		MaxVersion:             versions[chosen.Maximum],
		NextProtos:             chosen.Alpn,
		SessionTicketsDisabled: !chosen.Tickets,
	}
	trust, err := os.ReadFile(chosen.Trust)
	if err != nil || !config.ClientCAs.AppendCertsFromPEM(trust) {
		log.Fatal("no trust anchors in ", chosen.Trust)
	}
	for _, name := range chosen.Groups {
		config.CurvePreferences = append(config.CurvePreferences, groups[name])
	}
	if chosen.Keylog != "" {
		config.KeyLogWriter, err = os.OpenFile(chosen.Keylog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			log.Fatal(err)
		}
	}
	return config
}

func serve(connection *tls.Conn) {
	defer connection.Close()
	if err := connection.Handshake(); err != nil {
		log.Print("handshake failed: ", err)
		return
	}
	if err := json.NewEncoder(connection).Encode(seen(connection.ConnectionState())); err != nil {
		log.Print("report failed: ", err)
		return
	}
	if _, err := io.Copy(connection, connection); err != nil {
		log.Print("echo failed: ", err)
	}
}

func seen(state tls.ConnectionState) report {
	return report{
		Version:    tls.VersionName(state.Version),
		Alpn:       state.NegotiatedProtocol,
		ServerName: state.ServerName,
		Resumed:    state.DidResume,
		Client:     state.PeerCertificates[0].Subject.CommonName,
	}
}

#!/usr/bin/env bash
# Makes the certificates of the tests: a root, a server on this machine, a client, and a client of another root. They outlive us all.
set -euo pipefail
cd "$(dirname "$0")"
key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1.key"; }
root() { key "$1"; openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 36500 -out "$1.pem"; }
leaf() {
    key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$1" |
        openssl x509 -req -CA "$2.pem" -CAkey "$2.key" -set_serial "$3" -days 36500 -out "$1.pem" -extfile <(printf '%s' "$4")
}
root root
root stranger_root
leaf server root 1 'subjectAltName=IP:127.0.0.1,DNS:localhost'
leaf client root 2 'extendedKeyUsage=clientAuth'
leaf stranger stranger_root 3 'extendedKeyUsage=clientAuth'
rm ./*root.key stranger_root.pem

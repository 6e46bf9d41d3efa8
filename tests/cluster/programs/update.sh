#!/bin/sh
# Writes go.mod anew for a version of Kubernetes: ./update.sh 1.37.1
#
# k8s.io/kubernetes is not made to be imported: its go.mod points to folders of its own repository. The same
# modules are published as v0.MINOR.PATCH, and every one of them has to be named.
set -eu
cd "$(dirname "$0")"
version=$1
published=0.${version#*.}
upstream=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')

{
    printf 'module rpcgroup.test/programs\n\n'
    grep '^go ' "$upstream"
    grep '^godebug' "$upstream" || true
    printf '\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' "$version"
    sed -n 's#^[[:space:]]*\(k8s.io/[a-z-]*\) => ./staging.*#\1#p' "$upstream" | while read -r module; do
        printf '\t%s => %s v%s\n' "$module" "$module" "$published"
    done
    printf ')\n'
} > go.mod
# One etcd: CoreDNS wants a newer client than the server that Kubernetes names.
go get go.etcd.io/etcd/server/v3@v3.7.2
go get -tool sigs.k8s.io/kwok/cmd/kwok@v0.8.0 helm.sh/helm/v4/cmd/helm@v4.3.1 \
    github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
go mod tidy

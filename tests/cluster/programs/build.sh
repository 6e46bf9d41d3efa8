#!/bin/sh
# Builds every program of the test cluster: ./build.sh FOLDER
# The first build compiles Kubernetes: about 10 minutes on two idle cores. bed/programs.py keeps what it makes.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")"
version=$(sed -n 's#^[[:space:]]*k8s\.io/kubernetes \(v1\.[0-9.]*\)$#\1#p' go.mod)
minor=$(echo "$version" | cut -d. -f2)

# Without the stamp Kubernetes takes itself for v0.0.0-master.
stamp="-X k8s.io/component-base/version"
flags="-s -w $stamp.gitVersion=$version $stamp.gitMajor=1 $stamp.gitMinor=$minor $stamp.gitTreeState=clean"
export CGO_ENABLED=0 # static: they run in any image
go build -v -trimpath -ldflags "$flags" -o "$folder/" ./kube ./coredns ./pause
go build -v -trimpath -ldflags "-s -w" -o "$folder/" \
    sigs.k8s.io/kwok/cmd/kwok helm.sh/helm/v4/cmd/helm github.com/yannh/kubeconform/cmd/kubeconform
for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -sf kube "$folder/$name"
done

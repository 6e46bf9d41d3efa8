{{/* The release's name, with the chart's where it is not in it. Its objects begin with it; 63 characters with the longest ending. */}}
{{- define "rpcgroup.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "rpcgroup.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "rpcgroup.fullname" .) }}
{{- else }}{{ required "serviceAccount.name must be set where serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels of every object; call with (list . "COMPONENT"). */}}
{{- define "rpcgroup.labels" -}}
{{- $top := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
{{ include "rpcgroup.selector" . }}
{{- end }}

{{/* Labels that choose the pods of a component; never change them, a selector is immutable. */}}
{{- define "rpcgroup.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ $top.Chart.Name }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "rpcgroup.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Not empty: etcd is the chart's own. */}}
{{- define "rpcgroup.ownEtcd" -}}
{{- if not .Values.etcd.external.endpoints }}true{{ end }}
{{- end }}

{{/* The names of the chart's etcd in its certificate: the service's, and each member's, by which members check each other. */}}
{{- define "rpcgroup.etcdHosts" -}}
{{- $name := printf "%s-etcd" (include "rpcgroup.fullname" .) -}}
{{- $hosts := list "localhost" "127.0.0.1" (printf "%s.%s.svc" $name .Release.Namespace) -}}
{{- range $index := until (int .Values.etcd.replicas) -}}
{{- $hosts = append $hosts (printf "%s-%d.%s-peers.%s.svc" $name $index $name $.Release.Namespace) -}}
{{- end -}}
{{- join "," $hosts }}
{{- end }}

{{/* HOST:PORT[,HOST:PORT...], for the operator and the workers. */}}
{{- define "rpcgroup.etcdEndpoints" -}}
{{- if include "rpcgroup.ownEtcd" . }}{{ include "rpcgroup.fullname" . }}-etcd.{{ .Release.Namespace }}.svc:2379
{{- else }}{{ join "," .Values.etcd.external.endpoints }}
{{- end }}
{{- end }}

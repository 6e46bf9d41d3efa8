{{/* How a pod of the operator's image gets into etcd: environment, mounts and volumes belong together. Into the chart's own etcd the operator lets itself; `helm test` takes what it has made. Call with (list . "COMPONENT"). */}}
{{- define "rpcgroup.etcdEnv" -}}
{{- $top := index . 0 -}}
{{- $tested := and (include "rpcgroup.ownEtcd" $top) (eq (index . 1) "test") -}}
- name: RPCGROUP_OPERATOR_ETCD
  value: {{ include "rpcgroup.etcdEndpoints" $top | quote }}
{{- if and $tested $top.Values.etcd.tls.enabled }}
- name: RPCGROUP_ETCD_CA_FILE
  value: /etc/rpcgroup/etcd-ca/ca.crt
{{- end }}
{{- if and $tested $top.Values.etcd.auth.enabled }}
- name: RPCGROUP_ETCD_USERNAME
  value: root
- name: RPCGROUP_ETCD_PASSWORD_FILE
  value: /etc/rpcgroup/etcd-user/etcd-root-password
{{- end }}
{{- if not (include "rpcgroup.ownEtcd" $top) }}
{{- with $top.Values.etcd.external }}
{{- if .caSecret }}
- name: RPCGROUP_ETCD_CA_FILE
  value: /etc/rpcgroup/etcd-ca/ca.crt
{{- end }}
{{- if .clientCertificateSecret }}
- name: RPCGROUP_ETCD_CERT_FILE
  value: /etc/rpcgroup/etcd-client/tls.crt
- name: RPCGROUP_ETCD_KEY_FILE
  value: /etc/rpcgroup/etcd-client/tls.key
{{- end }}
{{- if .userSecret }}
- name: RPCGROUP_ETCD_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .userSecret }}, key: username}}
- name: RPCGROUP_ETCD_PASSWORD_FILE
  value: /etc/rpcgroup/etcd-user/password
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What is mounted: an array of a name, a Secret and those of its keys that are used. */}}
{{- define "rpcgroup.etcdFiles" -}}
{{- $top := index . 0 -}}
{{- $name := include "rpcgroup.fullname" $top -}}
{{- if include "rpcgroup.ownEtcd" $top }}
{{- if eq (index . 1) "test" }}
{{- if $top.Values.etcd.tls.enabled }}
- {name: etcd-ca, secret: {{ $name }}-etcd, keys: [ca.crt]}
{{- end }}
{{- if $top.Values.etcd.auth.enabled }}
- {name: etcd-user, secret: {{ $name }}-operator, keys: [etcd-root-password]}
{{- end }}
{{- end }}
{{- else }}
{{- with $top.Values.etcd.external }}
{{- if .caSecret }}
- {name: etcd-ca, secret: {{ .caSecret }}, keys: [ca.crt]}
{{- end }}
{{- if .clientCertificateSecret }}
- {name: etcd-client, secret: {{ .clientCertificateSecret }}, keys: [tls.crt, tls.key]}
{{- end }}
{{- if .userSecret }}
- {name: etcd-user, secret: {{ .userSecret }}, keys: [password]}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rpcgroup.etcdMounts" -}}
{{- range include "rpcgroup.etcdFiles" . | fromYamlArray }}
- {name: {{ .name }}, mountPath: /etc/rpcgroup/{{ .name }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "rpcgroup.etcdVolumes" -}}
{{- range include "rpcgroup.etcdFiles" . | fromYamlArray }}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
    {{- range .keys }}
    - {key: {{ . }}, path: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}

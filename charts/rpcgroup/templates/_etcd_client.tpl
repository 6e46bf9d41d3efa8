{{/* How a pod of the operator's image proves itself to etcd: environment, mounts and volumes belong together. */}}
{{- define "rpcgroup.etcdEnv" -}}
- name: RPCGROUP_OPERATOR_ETCD
  value: {{ include "rpcgroup.etcdEndpoints" . | quote }}
{{- with .Values.etcd.external }}
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

{{- define "rpcgroup.etcdMounts" -}}
{{- with .Values.etcd.external }}
{{- if .caSecret }}
- {name: etcd-ca, mountPath: /etc/rpcgroup/etcd-ca, readOnly: true}
{{- end }}
{{- if .clientCertificateSecret }}
- {name: etcd-client, mountPath: /etc/rpcgroup/etcd-client, readOnly: true}
{{- end }}
{{- if .userSecret }}
- {name: etcd-user, mountPath: /etc/rpcgroup/etcd-user, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "rpcgroup.etcdVolumes" -}}
{{- with .Values.etcd.external }}
{{- if .caSecret }}
- name: etcd-ca
  secret: {secretName: {{ .caSecret }}, defaultMode: 0440}
{{- end }}
{{- if .clientCertificateSecret }}
- name: etcd-client
  secret: {secretName: {{ .clientCertificateSecret }}, defaultMode: 0440}
{{- end }}
{{- if .userSecret }}
- name: etcd-user
  secret: {secretName: {{ .userSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}

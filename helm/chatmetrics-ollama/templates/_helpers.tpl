{{/* All resources are named after the release, so that the endpoint is predictable: http://RELEASE.NAMESPACE */}}
{{- define "chatmetrics.name" -}}
{{- .Release.Name -}}
{{- end -}}

{{/* These labels must never change between versions of the chart: a Deployment's selector is immutable. */}}
{{- define "chatmetrics.selectorLabels" -}}
app.kubernetes.io/name: chatmetrics-ollama
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .track }}
track: {{ . }}
{{- end }}
{{- end -}}

{{- define "chatmetrics.labels" -}}
{{ include "chatmetrics.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* repository@digest, or repository:tag. */}}
{{- define "chatmetrics.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "chatmetrics.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "chatmetrics.name" .) -}}
{{- end -}}

{{/* The account of pods that only use the serving pods: without a cloud role. */}}
{{- define "chatmetrics.clientAccountName" -}}
{{- .Values.serviceAccount.create | ternary (printf "%s-clients" (include "chatmetrics.name" .)) "default" -}}
{{- end -}}

{{/* The Secret with one key per client. */}}
{{- define "chatmetrics.tokensSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-tokens" (include "chatmetrics.name" .)) -}}
{{- end -}}

{{/* Clients that need a token: those in auth.clients, the smoke test and AnythingLLM. */}}
{{- define "chatmetrics.clients" -}}
{{- $clients := .Values.auth.clients -}}
{{- if .Values.smokeTest.enabled -}}
{{- $clients = append $clients .Values.smokeTest.tokenKey -}}
{{- end -}}
{{- if .Values.anythingllm.enabled -}}
{{- $clients = append $clients .Values.anythingllm.tokenKey -}}
{{- end -}}
{{- $clients | uniq | toJson -}}
{{- end -}}

{{- define "chatmetrics.modelsClaim" -}}
{{- .Values.storage.existingClaim | default (printf "%s-models" (include "chatmetrics.name" .)) -}}
{{- end -}}

{{/* Name of a database's volume; names of volumes cannot contain '_'. */}}
{{- define "chatmetrics.databaseVolume" -}}
database-{{ .name | replace "_" "-" }}
{{- end -}}

{{/* Pod security level "restricted", for containers of the images serve and Ollama. */}}
{{- define "chatmetrics.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch # otherwise every start would go through all files of the models
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "chatmetrics.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
